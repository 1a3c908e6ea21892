"""The page of `gen1-edit ui=true`, in Gradio. No other module needs Gradio."""

import html
import logging
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from gen1_train.editing.config import EditConfig
from gen1_train.editing.ui.form import MAX_STEPS, WHOLE
from gen1_train.editing.ui.guard import Guard
from gen1_train.editing.ui.hosts import Hosts
from gen1_train.editing.ui.pace import Pace
from gen1_train.editing.ui.studio import INPUT, OUTPUT, STRUCTURE, Cancelled, Result, Studio
from gen1_train.errors import UserError

logger = logging.getLogger(__name__)
QUEUE = 8  # edits that may wait while one runs; ours
UPLOAD_AGE = 6 * 3600  # seconds after which an unused upload is removed; ours
FILES = {"input": INPUT, "output": OUTPUT, "structure": STRUCTURE}
CSS = """
.gradio-container { max-width: 1400px !important; }
h1 { margin: 0; }
#layout { display: grid; grid-template: "first results" auto "settings results" 1fr / 2fr 3fr; gap: 12px; }
#first { grid-area: first; } #results { grid-area: results; } #settings { grid-area: settings; }
#first, #results, #settings { min-width: 0 !important; }
#players { gap: 12px; }
.file { gap: 4px; }
.upload { margin: 0; text-align: center; }
.upload img, .upload video { display: block; margin: auto; max-width: 100%; height: 130px; object-fit: contain; }
.upload figcaption { font-size: 12px; padding: 2px; overflow-wrap: anywhere; }
.refused { color: #b91c1c; padding: 8px; overflow-wrap: anywhere; }
@media (max-width: 800px) {
  .gradio-container { padding: 8px !important; }
  #layout { grid-template: "first" auto "results" auto "settings" auto / 1fr; }
}
"""
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
PLAY = "() => { for (const v of document.querySelectorAll('#results video')) { v.currentTime = 0; v.play(); } }"


def launch(page: gr.Blocks, config: EditConfig, studio: Studio) -> str:
    """Starts the server and returns its address. Raises UserError if it cannot listen there."""
    guard = Middleware(
        Guard,
        hosts=Hosts.of(config.ui_host, config.ui_names),
        folder=studio.folder,
        megabytes=config.ui_megabytes,
        tabs=studio,
    )
    for name in ("httpx", "uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    page.queue(max_size=QUEUE, default_concurrency_limit=1)
    system = ["system-ui", "sans-serif"]  # names, so that no font is fetched
    try:
        _, address, _ = page.launch(
            server_name=config.ui_host,
            server_port=config.ui_port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            allowed_paths=[],
            max_file_size=config.ui_megabytes * 1000**2,
            theme=gr.themes.Default(primary_hue="blue", font=system, font_mono=["ui-monospace", "monospace"]),
            css=CSS,
            app_kwargs={"middleware": [guard]},
            enable_monitoring=False,
        )
    except OSError as error:
        settings = f"ui_host={config.ui_host} ui_port={config.ui_port}"
        raise UserError(f"{settings}: cannot listen there, it may be in use: choose another ui_port=") from error
    return str(address)


def build(studio: Studio) -> gr.Blocks:
    """Builds the page: what every edit needs, then the results, and the settings of the edit."""
    limits = studio.limits
    with gr.Blocks(title="gen1-edit", analytics_enabled=False, delete_cache=(600, UPLOAD_AGE)) as page:
        gr.Markdown(
            f"# gen1-edit\nThe structure of a video, the content of a prompt or an image. "
            f"Uploads: up to {limits.megabytes} MB; up to {limits.seconds:g} s are edited, one edit at a time."
        )
        with gr.Row(elem_id="layout"):
            with gr.Column(elem_id="first"):
                form, controls = build_first(studio)
            with gr.Column(elem_id="results"):
                results = build_results()
            with gr.Column(elem_id="settings"):
                form |= build_settings(studio, controls)
        connect(page, studio, form, controls, results)
    return page


def build_first(studio: Studio) -> tuple[dict[str, Any], dict[str, Any]]:
    """Builds the input and the prompt, as part of the form (name of a setting -> component), and the controls."""
    has_prior = studio.editor.prior is not None
    prompts = studio.editor.recommended.prompts if has_prior else ()
    status = gr.Textbox(label="Status", interactive=False, value="ready", elem_id="status", max_lines=4, render=False)
    form: dict[str, Any] = {"input": build_upload(studio, "Video or image", "input", status)}
    form["prompt"] = gr.Textbox(
        label="Prompt",
        value=studio.config.prompt if has_prior else "",
        interactive=has_prior,
        placeholder=next(iter(prompts), "a watercolor of a fox"),
        info=None if has_prior else "Prompts need a prior, and this checkpoint has none: give an example image.",
        elem_id="prompt",
    )
    with gr.Row():
        run = gr.Button("Edit", variant="primary", elem_id="run", min_width=100)
        cancel = gr.Button("Cancel", elem_id="cancel", interactive=False, min_width=100)
    status.render()
    if prompts:
        examples = gr.Dataset(
            label="Example prompts",
            components=[gr.Textbox(visible=False)],
            samples=[[prompt] for prompt in prompts],
            samples_per_page=6,
            elem_id="examples",
        )
        examples.click(lambda row: row[0], examples, form["prompt"], queue=False, **HIDDEN)
    return form, {"status": status, "run": run, "cancel": cancel}


def build_upload(studio: Studio, label: str, name: str, status: gr.Textbox) -> gr.File:
    """Builds a field for a file, which is shown below it as soon as it is uploaded."""
    with gr.Column(elem_id=name, elem_classes="file", min_width=200):
        # any type: Gradio would refuse formats that Python's list of types does not know, such as .mts
        file = gr.File(label=label, height=110)
        preview = gr.HTML(visible=False)

    def show(path: str | None, request: gr.Request) -> tuple[Any, str]:
        if path is None:
            return gr.HTML(value="", visible=False), "ready"
        studio.keep_upload(session(request), Path(path))
        try:
            return gr.HTML(value=studio.preview(path), visible=True), "ready"
        except UserError as error:
            line = studio.failure(error)
            return gr.HTML(value=f'<p class="refused">{html.escape(line)}</p>', visible=True), line

    file.change(show, file, [preview, status], queue=False, **HIDDEN)
    return file


def build_settings(studio: Studio, controls: dict[str, Any]) -> dict[str, Any]:
    """Builds the other settings: name of a setting, as in `read_form` -> its component.

    Gradio changes an empty number field to 0 when it is shown, and refuses a value out of a field's range with a bare
    "Error". So fields that may be empty are texts, numbers have no range, and `read_form` checks them all.
    """
    initial = studio.config
    has_prior = studio.editor.prior is not None
    highest = studio.editor.highest_level
    slider = gr.Slider
    form: dict[str, Any] = {"image": build_upload(studio, "Example image", "example", controls["status"])}
    with gr.Accordion("Dials"):
        form["omega"] = slider(0, 20, initial.omega, step=0.1, label="omega", info="content: higher follows it more")
        form["omega_t"] = slider(0, 3, initial.omega_t, step=0.05, label="omega_t", info="time: below 1 flickers")
        structure = f"structure: 0 keeps all of it, {highest} is freest" if highest else "structure: learned at 0 only"
        form["t_s"] = slider(
            0, max(1, highest), initial.t_s, step=1, label="t_s", info=structure, interactive=highest > 0
        )
    with gr.Accordion("Sampler", open=False):
        form["steps"] = slider(1, MAX_STEPS, initial.steps, step=1, label="steps")
        form["solver"] = gr.Radio(["ddim", "dpm++"], value=initial.solver, label="solver")
        form["rescale"] = slider(
            0, 1, initial.rescale, step=0.05, label="rescale", info="takes back the contrast that a high omega adds"
        )
        form["seed"] = gr.Number(initial.seed, precision=0, label="seed")
        form["init_strength"] = slider(
            0.01, 1, initial.init_strength, step=0.01, label="init_strength", info="below 1 starts from the input"
        )
        form["temporal"] = gr.Checkbox(initial.temporal, label="temporal", info="off: each frame alone")
    with gr.Accordion("Content", open=False):
        form["negative_prompt"] = gr.Textbox(
            initial.negative_prompt if has_prior else "", label="Negative prompt", interactive=has_prior
        )
        form["image_share"] = slider(0, 1, initial.image_share, step=0.05, label="image_share, with a prompt")
    with gr.Accordion("Region and length", open=False):
        form["region"] = gr.Radio([WHOLE, "foreground", "background"], value=WHOLE, label="region, by depth")
        form["mask"] = build_upload(studio, "or a mask: white is edited", "mask", controls["status"])
        form["start"] = gr.Number(initial.start, precision=0, label="start, first frame")
        for name, label, empty in (("frames", "frames", "to the end"), ("fps", "frames a second (fps)", "the input's")):
            value = getattr(initial, name)
            form[name] = gr.Textbox("" if value is None else f"{value:g}", label=label, placeholder=empty)
    for name, box in form.items():
        box.elem_id = f"setting-{name}"
    return form


def build_results() -> dict[str, Any]:
    """Builds the components that show an edit and its command."""
    results: dict[str, Any] = {}
    player: dict[str, Any] = {
        "interactive": False,
        "autoplay": True,
        "loop": True,
        "min_width": 150,
        "buttons": ["download"],
    }
    with gr.Row(elem_id="players"):
        results["input"] = gr.Video(label="Input", elem_id="before", height=260, **player)
        results["output"] = gr.Video(label="Edit", elem_id="after", height=260, **player)
    results["structure"] = gr.Video(label="Structure, as the model sees it", elem_id="structure", height=260, **player)
    gr.Button("Play all from the start", size="sm").click(None, js=PLAY)
    results["download"] = gr.DownloadButton("Download the edit", interactive=False, elem_id="download")
    results["command"] = gr.Code(
        label="As a command",
        language="shell",
        interactive=False,
        elem_id="command",
        wrap_lines=True,
        lines=2,
        max_lines=8,
        show_line_numbers=False,
    )
    return results


def connect(
    page: gr.Blocks, studio: Studio, form: dict[str, Any], controls: dict[str, Any], results: dict[str, Any]
) -> None:
    """Connects the buttons and the closing of the tab with the studio."""
    number = gr.State(0)  # of the tab's newest edit

    show_status = partial(status_of, controls)

    def begin(request: gr.Request) -> dict[Any, Any]:
        return show_status("waiting for other edits", is_running=True) | {
            number: studio.visit(session(request)).begin()
        }

    def stop(request: gr.Request) -> dict[Any, Any]:
        studio.visit(session(request)).cancel()
        return show_status("cancelled", is_running=False)

    def work(values: dict[Any, Any], request: gr.Request, progress: gr.Progress = gr.Progress()) -> dict[Any, Any]:  # noqa: B008
        visit = studio.visit(session(request))
        pace = Pace()

        def on_progress(title: str, share: float | None, detail: str) -> None:
            progress(share or 0.0, desc=pace.line(title, share, detail))

        try:
            asked = {name: values[box] for name, box in form.items()}
            result = studio.edit(asked, visit, values[number], on_progress)
        except Cancelled:  # `stop` has shown it, and the next edit may be waiting already
            return {controls["status"]: gr.skip()}
        except Exception as error:
            if not isinstance(error, UserError):
                logger.exception("an edit on the page has failed")
            return show_status(studio.failure(error), is_running=False)
        return show_status("; ".join(["done", *result.notes]), is_running=False) | result_of(results, result)

    def refused(request: gr.Request) -> dict[Any, Any]:
        if studio.visit(session(request)).is_cancelled:  # Gradio may call that a failure, too
            return show_status("cancelled", is_running=False)
        return show_status(f"error: {QUEUE} other edits are waiting, or the connection was lost: try again", False)

    def leave(request: gr.Request) -> None:
        studio.leave(session(request))

    buttons = list(controls.values())
    begun = controls["run"].click(begin, None, [*buttons, number], queue=False, **HIDDEN)
    edited = begun.then(
        work,
        {*form.values(), number},
        [*buttons, *results.values()],
        show_progress_on=controls["status"],
        concurrency_limit=1,
        api_visibility="private",
    )
    edited.failure(refused, None, buttons, queue=False, **HIDDEN)
    controls["cancel"].click(stop, None, buttons, queue=False, cancels=[edited], **HIDDEN)
    page.unload(leave)


def status_of(controls: dict[str, Any], status: str, is_running: bool) -> dict[Any, Any]:
    """Shows a status, and enables the buttons that fit while an edit runs or does not."""
    return {
        controls["status"]: status,
        controls["run"]: gr.Button(interactive=not is_running),
        controls["cancel"]: gr.Button(interactive=is_running),
    }


def result_of(results: dict[str, Any], result: Result) -> dict[Any, Any]:
    """Shows the videos of an edit, its command, and the button to download it."""
    files = {name: str(result.folder / file) for name, file in FILES.items()}
    return {results[name]: path for name, path in files.items()} | {
        results["command"]: result.command,
        results["download"]: gr.DownloadButton(value=files["output"], interactive=True),
    }


def session(request: gr.Request) -> str:
    """The tab that a request comes from."""
    return str(request.session_hash)
