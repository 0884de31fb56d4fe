"""The calls of a load, each made when it is needed from its index and a seed: 100,000 of them take no memory."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass

from tgis_cli.bench.load.calls import Call
from tgis_cli.bench.load.prompts import Vocabulary
from tgis_cli.bench.load.shapes import Lengths
from tgis_cli.clients.parameters import Parameters
from tgis_server.wire import generation_pb2 as pb

SALT_SHIFT = 40  # bits for the number of a prompt; only huge batches exceed them
MIX = 0x9E3779B97F4A7C15  # so large that no index reaches a number that belongs to another seed


@dataclass(frozen=True, slots=True)
class CallShape:
    """What the calls of a load have in common."""

    parameters: Parameters
    is_streamed: bool = True
    num_inputs: int = 1
    seed: int = 0

    def make_call(self, texts: list[str], input_tokens: int, parameters: Parameters, index: int) -> Call:
        """
        Args:
            input_tokens: over all texts; 0 if not known.
        """
        if parameters.is_sampling:
            parameters = parameters.with_seed(make_rng(self.seed, index).getrandbits(32))
        length = parameters.max_new_tokens if parameters.max_new_tokens == parameters.min_new_tokens else None
        requests = [pb.GenerationRequest(text=text) for text in texts]
        request = (
            pb.SingleGenerationRequest(request=requests[0], params=parameters.to_proto())
            if self.is_streamed
            else pb.BatchedGenerationRequest(requests=requests, params=parameters.to_proto())
        )
        return Call(request.SerializeToString(), self.is_streamed, input_tokens, (length or 0) * len(texts))


@dataclass(frozen=True, slots=True)
class SyntheticFeed:
    """Random texts of exact lengths, and outputs that are forced to theirs.

    Lengths and words follow from the seed. The salt changes the first words only: without it, a second run on the same
    server would find the prompts of the first one in the prefix cache.
    """

    shape: CallShape
    vocabulary: Vocabulary
    inputs: Lengths
    outputs: Lengths
    shared_prefix: int = 0  # of the input tokens
    salt: int = 0

    def make_call(self, index: int) -> Call:
        rng = make_rng(self.shape.seed, index)
        output = self.outputs.draw(rng)
        lengths = [self.inputs.draw(rng) for _ in range(self.shape.num_inputs)]
        first = index * self.shape.num_inputs
        texts = [self._make_text(rng, length, first + number) for number, length in enumerate(lengths)]
        parameters = dataclasses.replace(self.shape.parameters, max_new_tokens=output, min_new_tokens=output)
        return self.shape.make_call(texts, sum(lengths), parameters, index)

    def _make_text(self, rng: random.Random, num_tokens: int, number: int) -> str:
        num_words = num_tokens - self.vocabulary.num_special
        words: list[str] = []
        if self.shared_prefix:
            prefix_rng = make_rng(self.shape.seed, -1)
            words = self.vocabulary.make_words(prefix_rng, self.shared_prefix, self.salt)
        name = number + (self.salt << SALT_SHIFT)
        words += self.vocabulary.make_words(rng, num_words - len(words), name)
        return self.vocabulary.joint.join(words)


def make_rng(seed: int, index: int) -> random.Random:
    """Random numbers of one call, the same in every process and run."""
    # Random ignores the sign of its seed, but the shared prefix has a negative index.
    return random.Random(((seed * MIX) ^ index) % (1 << 128))  # noqa: S311  reproducible
