"""Names of strangers: only plain ones become a part of a path."""

from typing import Any

import pytest

from gen1_train.batch import KEY
from gen1_train.system.names import PLAIN, file_suffix, member_name, plain_name, relative_path, shown

HOSTILE: list[Any] = [
    "../../../home/victim/.bashrc",
    "../x.tar",
    "/etc/passwd.tar",
    "a/b.tar",
    "a\\b.tar",
    "..tar",
    ".tar",
    ".hidden.tar",
    "a\0.tar",
    "a\n.tar",
    "a.tar\n",
    "a\x1b[2J.tar",
    "ä.tar",
    "a.index",
    "a" * 201 + ".tar",
    "",
    None,
    7,
    ["a.tar"],
]


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_plain_name_is_refused_in_one_printable_line(name: Any) -> None:
    with pytest.raises(ValueError, match="is not a plain name") as error:
        plain_name(name, ".tar")
    assert str(error.value).isprintable() and len(str(error.value)) < 200


def test_plain_names_are_returned() -> None:
    assert plain_name("video-448x256-000000.tar", ".tar") == "video-448x256-000000.tar"
    assert plain_name("a_B-9") == "a_B-9"
    assert PLAIN.pattern == KEY.pattern  # a key is a plain name


@pytest.mark.parametrize("name", ["../x", "a/b.jpg", "", "a b.jpg", "a.b.c", ".jpg", "a\n", 3])
def test_what_is_no_name_of_a_member_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="is not the name of a member"):
        member_name(name)
    assert member_name("frame00.jpg") == "frame00.jpg" and member_name("structure_latent.npy")


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.mp4", "a/../../x.mp4", "a/..", "", "a\0.mp4", "a/" * 2100, 3])
def test_a_path_that_leads_out_of_its_folder_is_refused(path: Any) -> None:
    with pytest.raises(ValueError, match="is not a path within a folder"):
        relative_path(path)


@pytest.mark.parametrize(
    "path", ["a.mp4", "a/b..c/ü 漢.mp4", "new\nline.mp4", "back\\slash.mp4", "no utf-8 \udcff.mp4"]
)
def test_the_names_of_a_users_own_files_are_paths(path: str) -> None:
    assert relative_path(path) == path


def test_a_suffix_is_short_and_plain() -> None:
    assert [file_suffix(s) for s in (".mp4", ".JPG", "", ".a b", ".a\0", ".../x", "." + "a" * 17)] == [
        ".mp4",
        ".JPG",
        "",
        "",
        "",
        "",
        "",
    ]


def test_a_name_is_shown_as_short_ascii() -> None:
    assert shown("a\x1b[2J\n") == r"'a\x1b[2J\n'" and len(shown("x" * 10_000)) < 70
