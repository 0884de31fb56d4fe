"""Where commands keep what outlives them."""

from __future__ import annotations

from pathlib import Path

from tgis_server.host.user_dirs import find_state_dir, make_private_dir


def test_the_directory_is_in_the_users_state_directory_if_there_is_a_home(tmp_path: Path):
    home = {"HOME": str(tmp_path)}

    assert find_state_dir(home) == tmp_path / ".local" / "state" / "tgis"
    assert find_state_dir(home | {"XDG_STATE_HOME": "/state"}) == Path("/state/tgis")
    assert find_state_dir(home | {"XDG_STATE_HOME": "relative"}) == tmp_path / ".local" / "state" / "tgis"
    assert find_state_dir({"HOME": str(tmp_path / "missing")}) is None


def test_a_new_directory_is_for_this_user_only_and_an_existing_one_is_left_alone(tmp_path: Path):
    tmp_path.chmod(0o755)

    make_private_dir(tmp_path / "a" / "b")
    make_private_dir(tmp_path / "a" / "b")

    assert [path.stat().st_mode & 0o777 for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")] == [
        0o755,
        0o700,
        0o700,
    ]
