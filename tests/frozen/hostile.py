"""Folders of networks that try to run code when a library loads them: the code would write a file."""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.running import WEIGHTS

CODE = """
from transformers import PreTrainedTokenizer
open({marker!r}, "w").write("code of a checkpoint has run")
class Evil(PreTrainedTokenizer):
    pass
"""


def hostile_clip(folder: Path, marker: Path) -> Path:
    """Copies the miniature's CLIP with a tokenizer whose code writes the file `marker`; returns the folder."""
    shutil.copytree(WEIGHTS / "clip", folder)
    change_json(folder / "open_clip_config.json", "model_cfg", "text_cfg", **remote_tokenizer())
    auto_map = {"AutoTokenizer": ["evil.Evil", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Evil", "auto_map": auto_map}))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "evil.py").write_text(CODE.format(marker=str(marker)))
    return folder


def remote_tokenizer() -> dict[str, Any]:
    """Returns what makes open_clip take a tokenizer with code from the folder."""
    return {"hf_tokenizer_name": "here", "tokenizer_kwargs": {"trust_remote_code": True}}


def change_json(file: Path, *path: str, **values: Any) -> None:
    """Sets values in a section of a JSON file, which the path leads to."""
    content = json.loads(file.read_text())
    section = content
    for name in path:
        section = section[name]
    section.update(values)
    file.write_text(json.dumps(content))
