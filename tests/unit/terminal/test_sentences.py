from __future__ import annotations

import io

from terminals import pseudo_terminal
from tgis_cli.terminal.sentences import print_sentence

SENTENCE = "The server does not respond; trying again in 1 s\x1b[2J"


def test_a_terminal_gets_whole_words_and_a_pipe_the_whole_sentence():
    pipe = io.StringIO()
    print_sentence(SENTENCE, pipe)
    with pseudo_terminal(30) as terminal:
        print_sentence(SENTENCE, terminal.stream)

    assert pipe.getvalue() == "The server does not respond; trying again in 1 s\\u001b[2J\n"
    assert terminal.lines == ["The server does not respond;", "trying again in 1 s\\u001b[2J"]
