"""Which servers `tgis stop` stops."""

from __future__ import annotations

import pytest

from running import make_running
from tgis_cli.clients.stopping import Stopped, describe_survivors, pick_servers
from tgis_server.errors import Unavailable, UsageError

DEMO = make_running(pid=100, grpc_port=8033)
LLAMA = make_running(pid=200, grpc_port=8034, model="org/llama")
LOCAL = make_running(pid=300, grpc_port=None, model="/models/llama/")
BOTH = [DEMO, LLAMA]


@pytest.mark.parametrize("name", ["org/llama", "llama", "8034", "127.0.0.1:8034", "200"])
def test_a_server_is_named_by_model_port_address_or_pid(name: str):
    assert pick_servers([name], BOTH, everything=False) == [LLAMA]


def test_a_slash_at_the_end_of_a_directory_does_not_matter():
    assert pick_servers(["/models/llama"], [LOCAL], everything=False) == [LOCAL]
    assert pick_servers(["llama/"], [LOCAL], everything=False) == [LOCAL]


def test_one_server_under_two_names_is_stopped_once():
    assert pick_servers(["demo", "8033", "llama"], BOTH, everything=False) == BOTH


def test_an_empty_name_is_a_usage_error():
    with pytest.raises(UsageError, match=r"^The name of a server is empty"):
        pick_servers([""], [DEMO], everything=False)


def test_without_a_name_the_only_server_is_stopped():
    assert pick_servers([], [DEMO], everything=False) == [DEMO]


def test_all_means_all_even_if_there_are_none():
    assert pick_servers([], BOTH, everything=True) == BOTH
    assert pick_servers([], [], everything=True) == []


@pytest.mark.parametrize(
    ("names", "running", "complaint"),
    [
        (
            [],
            BOTH,
            "Several servers are running: demo at 127.0.0.1:8033 (pid 100), org/llama at 127.0.0.1:8034 (pid 200). "
            "Name one, or give --all.",
        ),
        (
            ["llama"],
            [LLAMA, LOCAL],
            "Several servers are called llama: org/llama at 127.0.0.1:8034 (pid 200), /models/llama/ at no port yet "
            "(pid 300). Give the port or the pid of one.",
        ),
        (["dmo"], [DEMO], "No server is called dmo; did you mean demo?"),
        (["8034"], [DEMO], "No server is called 8034; there is demo at 127.0.0.1:8033 (pid 100)."),
        (["x"], [DEMO], "No server is called x; there is demo at 127.0.0.1:8033 (pid 100)."),
        (
            ["x"],
            BOTH,
            "No server is called x; there are demo at 127.0.0.1:8033 (pid 100), org/llama at 127.0.0.1:8034 (pid 200).",
        ),
    ],
)
def test_an_ambiguous_choice_is_a_usage_error_that_lists_the_servers(names: list, running: list, complaint: str):
    with pytest.raises(UsageError) as refused:
        pick_servers(names, running, everything=False)

    assert str(refused.value) == complaint


def test_a_name_together_with_all_is_a_usage_error():
    with pytest.raises(UsageError, match="--all and demo are given"):
        pick_servers(["demo"], BOTH, everything=True)


@pytest.mark.parametrize("names", [[], ["demo"]])
def test_without_a_running_server_there_is_nothing_to_stop(names: list[str]):
    with pytest.raises(Unavailable, match="No server of this user is running"):
        pick_servers(names, [], everything=False)


def test_servers_that_do_not_end_are_named_with_their_calls():
    survivors = [Stopped(DEMO, 1.0), Stopped(LLAMA, None, 2)]

    assert describe_survivors(survivors) == (
        "org/llama (pid 200) is still running, with 2 calls in flight: wait, or end the calls with `tgis stop --now`."
    )
    assert describe_survivors(survivors[:1]) == ""
