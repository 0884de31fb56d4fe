"""Text to tokens and back."""

from tgis_server.frontend.text.detokenizer import Detokenizer, PieceDecoder
from tgis_server.frontend.text.encoding import Encoding, byte_offsets
from tgis_server.frontend.text.stop import StopMatcher, StopSequences
from tgis_server.frontend.text.tokenizer import EncodedInput, Tokenizer, TokenizerFailed, read_tokenizer
from tgis_server.frontend.text.vocabulary import load_vocabulary

__all__ = [
    "Detokenizer",
    "EncodedInput",
    "Encoding",
    "PieceDecoder",
    "StopMatcher",
    "StopSequences",
    "Tokenizer",
    "TokenizerFailed",
    "byte_offsets",
    "load_vocabulary",
    "read_tokenizer",
]
