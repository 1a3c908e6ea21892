"""Configs for Python callers: composed like those of the command line, and without it."""

from collections.abc import Sequence
from typing import Any, TypeVar

from gen1_train.cli.app import explain
from gen1_train.cli.arguments import quoted_settings
from gen1_train.cli.names import conf_dir
from gen1_train.errors import UserError

Config = TypeVar("Config")


def compose_config(name: str, schema: type[Config], settings: Sequence[str]) -> Config:
    """Composes the config of a command from conf/`name`.yaml and `settings`, each `key=value` as on its command line.

    Hydra's global state is the same afterwards, so that a caller who uses Hydra is not disturbed. Raises UserError for
    a setting that does not exist, is missing, or has the wrong type.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    before = GlobalHydra.get_state()
    try:
        for setting in settings:
            if "=" not in setting:
                raise UserError(f"{setting!r} is not a setting: write 'KEY=VALUE', as on the command line")
        overrides = quoted_settings(settings, schema, name)
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(conf_dir().absolute()), version_base="1.3"):
            composed: Any = OmegaConf.to_object(compose(name, overrides))
    except Exception as error:
        line = explain(error, schema, name)
        if line is None:
            raise
        raise UserError(line) from error
    finally:
        GlobalHydra.set_state(before)
    return composed
