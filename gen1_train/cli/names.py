"""The names of settings: all of them, the groups, and what a name that does not exist is likely to mean."""

import difflib
import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

# names that other tools use, and our settings of that meaning: the first that the command has is suggested
SYNONYMS = {
    "learning_rate lr base_lr max_lr": "optim.lr",
    "batch_size batch global_batch_size train_batch_size bs": "data.batch_clips data.batch batch",
    "epochs num_epochs max_epochs max_steps num_steps max_train_steps iterations iters": "stage.steps steps",
    "num_inference_steps sampling_steps ddim_steps": "steps sampling.steps",
    "gpus num_gpus n_gpus gpu devices num_devices nproc_per_node num_processes": "trainer.devices workers",
    "nodes num_nodes nnodes machines num_machines": "trainer.nodes",
    "device accelerator cuda cpu": "trainer.accelerator device",
    "num_workers dataloader_num_workers n_workers num_proc jobs threads": "data.workers workers",
    "precision mixed_precision dtype fp16 bf16 amp half": "trainer.precision precision",
    "gradient_accumulation_steps accumulate_grad_batches grad_accum accumulation_steps": "trainer.accumulate",
    "grad_clip clip_grad clip_grad_norm max_grad_norm gradient_clip_val": "optim.clip_norm",
    "warmup lr_warmup_steps num_warmup_steps": "optim.warmup_steps",
    "scheduler lr_scheduler": "optim.schedule solver",
    "wd": "optim.weight_decay",
    "ema_decay use_ema ema_rate": "ema.decays",
    "gradient_checkpointing activation_checkpointing": "model.checkpointing",
    "save_steps save_every save_interval checkpointing_steps ckpt_every": "checkpoint.every",
    "save_total_limit checkpoints_total_limit save_top_k": "checkpoint.keep",
    "logging_steps log_interval log_every_n_steps print_freq": "log.every",
    "eval_every eval_steps validation_steps val_check_interval": "validation.every",
    "report_to use_wandb logger": "log.wandb",
    "wandb_project project_name": "log.project",
    "output_dir outdir out_dir out output_folder output_path output_file save_dir save_path logdir": "output",
    "run_name exp_name experiment_name run_id": "name",
    "data_dir dataset dataset_path data_path data_root train_data_dir shards root": "data.root source data",
    "input videos video_dir input_dir footage": "source data input",
    "input_video video video_path input_path input_file source src": "input source data",
    "pairs csv list": "data source",
    "model_path model_dir model ckpt ckpt_path checkpoint_path run load": "checkpoint init.checkpoint",
    "pretrained pretrained_model_name_or_path sd sd_path base_model init_from": "init.from",
    "text caption text_prompt description": "prompt",
    "negative neg_prompt": "negative_prompt",
    "style style_image image_prompt image_path reference reference_image example": "image images",
    "guidance_scale cfg cfg_scale guidance scale": "omega sampling.omega",
    "temporal_scale temporal_guidance": "omega_t",
    "guidance_rescale rescale_cfg": "rescale",
    "structure_level blur fidelity ts": "t_s",
    "strength denoising_strength sdedit": "init_strength",
    "sampler": "solver",
    "num_frames n_frames length max_frames video_length": "frames recipe.cut.frames",
    "start_frame offset skip": "start",
    "frame_rate framerate": "fps",
    "size resolution width height image_size": "bucket",
    "random_seed manual_seed": "seed",
    "host server_name": "ui_host",
    "port server_port": "ui_port",
    "force yes clobber overwrite_output_dir": "overwrite",
    "dry_run dryrun": "check_only",
    "lora lora_r rank": "customize.lora_rank",
}
# names of what needs no setting, and how it is done
REMEDIES = {
    "resume auto_resume resume_from resume_from_checkpoint": "the same command, called again, resumes what it began",
}
WRITTEN = {"from_": "from"}  # `from` is a keyword of Python, so the field of the setting init.from is called from_


def conf_dir() -> Path:
    """The folder of config values: inside the package in a wheel, next to it in a checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "conf"
    return packaged if packaged.is_dir() else package.parent / "conf"


def settings(schema: type, prefix: str = "") -> dict[str, Any]:
    """Maps the dotted names of all settings of a config class to their types."""
    types: dict[str, Any] = {}
    for name, kind in get_type_hints(schema).items():
        if is_dataclass(kind):
            types |= settings(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            types[f"{prefix}{name}"] = kind
    return types


def as_typed(name: str) -> str:
    """The name of a setting as users write it: init.from_ is init.from."""
    section, dot, field = name.rpartition(".")
    return section + dot + WRITTEN.get(field, field)


def groups(config_name: str) -> dict[str, list[str]]:
    """Maps the groups of a command (GROUP=NAME) to the names to choose from."""
    text = (conf_dir() / f"{config_name}.yaml").read_text()
    names = re.findall(r"^  - (\w+):", text, re.MULTILINE)
    return {name: sorted(path.stem for path in (conf_dir() / name).glob("*.yaml")) for name in names}


def unknown(key: str, schema: type, config_name: str | None = None) -> str:
    """The message for a setting that does not exist, with the one that is likely meant."""
    if remedy := _entry(REMEDIES, key):
        return f"there is no setting {key}: {remedy}"
    meant = suggestion(key, schema, config_name)
    return f"there is no setting {key}" + (f"; did you mean {meant}?" if meant else "; see --help")


def suggestion(key: str, schema: type, config_name: str | None = None) -> str | None:
    """The setting, section or group that a name that does not exist is likely to mean: by meaning, then by spelling."""
    names = [as_typed(name) for name in settings(schema)]
    sections = sorted({name[: dot.start()] for name in names for dot in re.finditer(r"\.", name)})
    known = [*names, *sections, *(groups(config_name) if config_name else ())]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.8)  # a typing error
    if close:
        return close[0]
    last = _plain(key)
    for name in (_entry(SYNONYMS, key) or "").split():
        if name in known:
            return name
    ends = [name for name in known if _plain(name) == last]  # in another section
    if ends:
        return max(ends, key=lambda name: difflib.SequenceMatcher(None, key, name).ratio())
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return close[0] if close else None


def _entry(table: dict[str, str], key: str) -> str | None:
    """The value in a table for a name that is one of the words of a key; None if there is none."""
    return next((value for names, value in table.items() if _plain(key) in names.split()), None)


def _plain(key: str) -> str:
    """The last part of a name: optim.learning-rate is learning_rate."""
    return key.lower().replace("-", "_").rpartition(".")[2]
