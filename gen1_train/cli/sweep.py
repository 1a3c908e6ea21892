"""--multirun: runs of one call that would write to the same place are refused before the first of them starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gen1_train.cli.names import conf_dir
from gen1_train.errors import UserError

FLAGS = ("--multirun", "-m")


def check_sweep(config_name: str, arguments: Sequence[str]) -> None:
    """Composes the config of every run of a sweep, and compares where they write.

    A config class has a method `destinations` for this: the files and folders that no other run may write, each with
    the setting that names it. `arguments`: from `arguments.prepared`. Raises UserError for one that two runs share.
    """
    words = [argument for argument in arguments if argument[0] != "-" and ("=" in argument or argument[0] == "~")]
    if not set(FLAGS) & set(arguments) and not any(word.lower() == "hydra.mode=multirun" for word in words):
        return
    swept, configs = _runs(config_name, words)
    written: set[Path] = set()
    for config in configs:
        for setting, path in config.destinations() if hasattr(config, "destinations") else ():
            if path.resolve() in written:
                raise UserError(_clash(setting, path, swept, config))
            written.add(path.resolve())


def _runs(config_name: str, words: list[str]) -> tuple[list[str], list[Any]]:
    """Returns the names that a sweep varies, and the config of each run.

    Raises Hydra's exceptions for mistakes, as the runs would.
    """
    from hydra import compose, initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf, open_dict

    configs = []
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        overrides = parser.parse_overrides(words)
        [combined] = BasicSweeper.split_arguments(overrides, None)
        for job in combined:
            composed = compose(config_name, job, return_hydra_config=True)
            HydraConfig.instance().set_config(composed)  # values may refer to it: ${hydra:runtime.choices.model}
            with open_dict(composed):
                del composed["hydra"]
            configs.append(OmegaConf.to_object(composed))
    return [override.key_or_group for override in overrides if override.is_sweep_override()], configs


def _clash(setting: str, path: Path, swept: Sequence[str], config: Any) -> str:
    """The message for two runs that write to the same place, with a value of the setting that has one for each."""
    value = Path(str(getattr(config, setting)))
    varied = "-".join(f"${{hydra:runtime.choices.{name}}}" if _is_group(name) else f"${{{name}}}" for name in swept)
    is_file = value.suffix in (".mp4", ".html", ".png")
    example = value.with_stem(f"{value.stem}-{varied}") if is_file else f"{value}-{varied}"
    return f"--multirun would write {path} more than once: give each run its own, as in '{setting}={example}'"


def _is_group(name: str) -> bool:
    return (conf_dir() / name).is_dir()
