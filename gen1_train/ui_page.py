"""The page of `gen1-edit ui=true`, in Gradio: the one room that needs it installed."""

import logging
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gen1_train.edit import EditConfig
from gen1_train.errors import UserError
from gen1_train.ui import INPUT, OUTPUT, STRUCTURE, Studio, reported
from gen1_train.ui_form import MAX_FPS, MAX_STEPS, WHOLE

QUEUE = 8  # edits that may wait for the one that runs; ours
UPLOAD_AGE = 6 * 3600  # seconds after which an upload that nobody came back to is removed; ours
FILES = {"input": INPUT, "output": OUTPUT, "structure": STRUCTURE}
# what the browser may load: this page alone. Gradio's own page would ask others for fonts and scripts
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
CSS = """
.gradio-container { max-width: 1400px !important; }
h1 { margin: 0; }
#players { gap: 12px; }
@media (max-width: 600px) { .gradio-container { padding: 8px !important; } }
"""
PLAY = "() => { for (const v of document.querySelectorAll('#results video')) { v.currentTime = 0; v.play(); } }"


class SelfContained:
    """Middleware: tells browsers to load nothing from elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", POLICY)]
            await send(message)

        await self.app(scope, receive, with_policy)


def launch(page: gr.Blocks, config: EditConfig) -> str:
    """Starts the server; returns its address. Raises UserError."""
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
            app_kwargs={"middleware": [Middleware(SelfContained)]},
        )
    except OSError as error:
        where = f"ui_host={config.ui_host} ui_port={config.ui_port}"
        raise UserError(f"{where} cannot be listened at, it may be in use: choose another ui_port=") from error
    return str(address)


def build(studio: Studio) -> gr.Blocks:
    """The page: what is asked for on the left, what came of it on the right."""
    limits = studio.limits
    with gr.Blocks(title="gen1-edit", analytics_enabled=False, delete_cache=(600, UPLOAD_AGE)) as page:
        gr.Markdown(
            f"# gen1-edit\nThe structure of a video, the content of a prompt or an image. "
            f"Uploads: up to {limits.megabytes} MB and {limits.seconds:g} s of video; one edit at a time."
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                form = asked(studio)
                with gr.Row():
                    run = gr.Button("Edit", variant="primary", elem_id="run")
                    cancel = gr.Button("Cancel", elem_id="cancel")
            with gr.Column(scale=3, min_width=300, elem_id="results"):
                results = shown()
        wire(page, studio, form, results, run, cancel)
    return page


def asked(studio: Studio) -> dict[str, Any]:
    """The form, by the names that `read_form` knows."""
    given, has_prior = studio.config, studio.editor.prior is not None
    form: dict[str, Any] = {
        "input": gr.File(label="Video or image", file_types=["video", "image"], height=110, elem_id="input"),
        "prompt": gr.Textbox(
            label="Prompt",
            value=given.prompt if has_prior else "",
            interactive=has_prior,
            placeholder="a watercolour of a fox",
            info=None if has_prior else "This checkpoint has no prior, which prompts need: give an example image.",
        ),
        "image": gr.Image(
            label="Example image", type="filepath", image_mode=None, sources=["upload"], height=170, elem_id="example"
        ),
    }
    slider, number = gr.Slider, gr.Number
    with gr.Accordion("Dials"):
        form["omega"] = slider(0, 20, given.omega, step=0.1, label="omega", info="content: higher follows it harder")
        form["omega_t"] = slider(0, 3, given.omega_t, step=0.05, label="omega_t", info="time: below 1 flickers")
        form["t_s"] = slider(0, 7, given.t_s, step=1, label="t_s", info="structure: 0 keeps all of it, 7 is freest")
    with gr.Accordion("Sampler", open=False):
        form["steps"] = slider(
            1,
            MAX_STEPS,
            given.steps,
            step=1,
            label="steps",
        )
        form["solver"] = gr.Radio(["ddim", "dpm++"], value=given.solver, label="solver")
        form["seed"] = number(given.seed, precision=0, label="seed", minimum=0)
        form["init_strength"] = slider(
            0.01, 1, given.init_strength, step=0.01, label="init_strength", info="below 1 starts from the input"
        )
        form["temporal"] = gr.Checkbox(given.temporal, label="temporal", info="off: each frame alone")
    with gr.Accordion("Content", open=False):
        form["negative_prompt"] = gr.Textbox(label="Negative prompt", interactive=has_prior)
        form["image_share"] = slider(0, 1, given.image_share, step=0.05, label="image_share, with a prompt")
    with gr.Accordion("Region and length", open=False):
        form["region"] = gr.Radio([WHOLE, "foreground", "background"], value=WHOLE, label="region, by depth")
        form["mask"] = gr.File(label="or a mask: white is edited", file_types=["video", "image"], height=110)
        form["start"] = number(given.start, precision=0, minimum=0, label="start, first frame")
        form["frames"] = number(given.frames, precision=0, minimum=1, label="frames, empty: to the end")
        form["fps"] = number(given.fps, minimum=0.1, maximum=MAX_FPS, label="fps, empty: the input's")
    return form


def shown() -> dict[str, Any]:
    """The results."""
    results: dict[str, Any] = {}
    results["status"] = gr.Textbox(label="Status", interactive=False, value="ready", elem_id="status")
    player: dict[str, Any] = {
        "interactive": False,
        "autoplay": True,
        "loop": True,
        "min_width": 240,
        "buttons": ["download"],
    }
    with gr.Row(elem_id="players"):
        results["input"] = gr.Video(label="Input", elem_id="before", **player)
        results["output"] = gr.Video(label="Edit", elem_id="after", **player)
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


def wire(
    page: gr.Blocks, studio: Studio, form: dict[str, Any], results: dict[str, Any], run: gr.Button, cancel: gr.Button
) -> None:
    """What the buttons do."""

    def begin(request: gr.Request) -> str:
        studio.visit(str(request.session_hash)).cancelled.clear()
        return "waiting for its turn"

    def stop(request: gr.Request) -> None:
        studio.visit(str(request.session_hash)).cancelled.set()

    def leave(request: gr.Request) -> None:
        studio.leave(str(request.session_hash))

    def check(path: str | None) -> str:
        with reported(said := ["ready"]):
            if path is not None:
                studio.limits.check_upload(path)
        return said[0]

    def work(given: dict[Any, Any], request: gr.Request, progress: gr.Progress = gr.Progress()) -> dict[Any, Any]:  # noqa: B008
        def watch(what: str, done: int, total: int | None) -> None:
            progress((done, total), desc=what, unit="frames")

        visit, command = studio.visit(str(request.session_hash)), ""
        with reported(said := ["done"]):
            command = studio.edit({name: given[box] for name, box in form.items()}, visit, watch)
        good = bool(command)
        files = {name: str(visit.folder / file) if good else None for name, file in FILES.items()}
        return {results[name]: path for name, path in files.items()} | {
            results["status"]: said[0],
            results["command"]: command,
            results["download"]: gr.DownloadButton(value=files["output"], interactive=good),
        }

    hidden: dict[str, Any] = {"api_visibility": "private"}
    form["input"].change(check, form["input"], results["status"], queue=False, show_progress="hidden", **hidden)
    run.click(begin, None, results["status"], queue=False, show_progress="hidden", **hidden).then(
        work,
        set(form.values()),
        list(results.values()),
        show_progress_on=results["status"],
        concurrency_limit=1,
        **hidden,
    )
    cancel.click(stop, None, None, queue=False, **hidden)
    page.unload(leave)
