"""Inputs that cannot be tokenized or have no tokens, through the whole front-end."""

from __future__ import annotations

import grpc
from tokenizers import Tokenizer, models, pre_tokenizers

from frontends import batch, failure_of, run, serving, single, tokens
from links import FakeLink, count_up
from tgis_server.wire import generation_pb2 as pb

NO_TOKENS = (grpc.StatusCode.INVALID_ARGUMENT, "tokenizer error the input is empty")


def words_without_unknown() -> Tokenizer:
    """A vocabulary of the words t0 and t1; the library refuses any other."""
    tokenizer = Tokenizer(models.WordLevel({"t0": 0, "t1": 1}, unk_token="missing"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def test_an_input_that_the_tokenizer_refuses_rejects_the_call_with_its_message():
    async def test() -> None:
        async with serving(library=words_without_unknown()) as server:
            unary = await failure_of(server.generate("t0", "other", "t1 another"))
            stream = await failure_of(server.stub.GenerateStream(single("other")).read())

            assert unary == stream
            assert unary[0] is grpc.StatusCode.INVALID_ARGUMENT
            assert unary[1].startswith("tokenizer error WordLevel error: Missing [UNK] token")
            assert server.link.submitted == []

    run(test)


def test_a_text_that_the_tokenizer_refuses_fails_tokenize_with_its_message():
    async def test() -> None:
        async with serving(library=words_without_unknown()) as server:
            request = pb.BatchedTokenizeRequest(requests=[pb.TokenizeRequest(text="other")])
            status, text = await failure_of(server.stub.Tokenize(request))

            assert status is grpc.StatusCode.INTERNAL
            assert text.startswith("WordLevel error: Missing [UNK] token")

    run(test)


def test_an_input_without_tokens_is_refused():
    """This tokenizer adds no token, so there is nothing to continue."""

    async def test() -> None:
        async with serving(FakeLink(count_up)) as server:
            assert await failure_of(server.generate("t1", "")) == NO_TOKENS
            assert await failure_of(server.stub.GenerateStream(single("")).read()) == NO_TOKENS
            assert (await server.stub.Generate(batch("t1", **tokens(1)))).responses[0].text == " t2"

    run(test)
