"""Lines of processes on the launcher's outputs: prefixes, JSON, and an output that nobody reads."""

from __future__ import annotations

import io
import json

from tgis_cli.supervisor.terminal import Terminal

NAMES = ["launcher", "shard-0"]


class Outputs:
    def __init__(self, *, as_json: bool = False, stdout: io.StringIO | None = None) -> None:
        self.stdout, self.stderr = stdout or io.StringIO(), io.StringIO()
        self.terminal = Terminal(self.stdout, self.stderr, {}, as_json=as_json, names=NAMES)

    def finish(self) -> tuple[str, str]:
        assert self.terminal.close(timeout_s=5)
        return self.stdout.getvalue(), self.stderr.getvalue()


class BrokenOutput(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_lines_keep_their_stream_and_get_the_name_of_their_process():
    outputs = Outputs()

    outputs.terminal.relay("shard-0", "to stdout", to_stderr=False)
    outputs.terminal.relay("launcher", "to stderr", to_stderr=True)

    assert outputs.finish() == ("shard-0  | to stdout\n", "launcher | to stderr\n")


def test_as_json_objects_pass_and_other_lines_are_wrapped():
    outputs = Outputs(as_json=True)

    outputs.terminal.relay("shard-0", '{"message": "own"}', to_stderr=True)
    outputs.terminal.relay("shard-0", "{not json", to_stderr=True)
    own, wrapped = map(json.loads, outputs.finish()[1].splitlines())

    assert own == {"message": "own"}
    assert wrapped.pop("time").endswith("Z")
    assert wrapped == {"level": "warning", "process": "shard-0", "message": "{not json"}


def test_an_output_that_is_gone_does_not_hold_up_the_other():
    outputs = Outputs(stdout=BrokenOutput())

    outputs.terminal.print("ready")
    outputs.terminal.print_last("the end")

    assert outputs.finish()[1] == "the end\n"
