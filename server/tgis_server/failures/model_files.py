"""The files of the model (exit code 3)."""

from tgis_server.errors import ModelError
from tgis_server.failures.failure import Failure

REVISION_NOT_CACHED = Failure(
    "revision-not-cached",
    "the cache has the model, but not the `config.json` of the revision",
    "Config file not found in local cache for model {model}, revision {revision}. "
    "Expected {expected}; the cache has {revisions}. `tgis download-weights {model} --revision {revision}` downloads "
    "it.",
    ModelError,
)
MODEL_NOT_FOUND = Failure(
    "model-not-found",
    "the name is neither in the cache nor a directory; a launch says first `Failed to resolve config path:`",
    "Model {model} not found: there is no directory of that name{found}.",
    ModelError,
)
NOT_A_DIRECTORY = Failure(
    "not-a-directory",
    "the model's directory does not exist",
    "{model_dir} is not a directory: give a model directory, or download the model first.",
    ModelError,
)
NO_CONFIG = Failure(
    "no-config",
    "the model's directory has no `config.json`",
    "{model_dir} has no config.json; it is not a model directory, or its download is incomplete.",
    ModelError,
)
JSON_UNREADABLE = Failure(
    "json-unreadable",
    "a JSON file of the model cannot be opened",
    "{file} cannot be read ({reason}): check that it exists and is complete, and that this user may read it.",
    ModelError,
)
JSON_BROKEN = Failure(
    "json-broken",
    "a JSON file of the model does not parse",
    "{file} is not valid JSON ({reason}): fix it, or download it again.",
    ModelError,
)
JSON_NO_OBJECT = Failure(
    "json-no-object",
    "a JSON file of the model holds a list or a single value",
    "{file} holds a {found}, not an object: fix it, or download it again.",
    ModelError,
)
CONFIG_NOT_SUPPORTED = Failure(
    "config-not-supported",
    "no engine supports the architecture or a value in `config.json`",
    "{file}: {problem}",
    ModelError,
)
ENGINE_NOT_PRESENT = Failure(
    "engine-not-present",
    "the native engine cannot run the model, and the requested engine is missing",
    "{problem} The requested engine, --deployment-framework {framework}, is not part of this version.",
    ModelError,
)
WEIGHTS_NOT_FOUND = Failure(
    "weights-not-found",
    "there is neither a safetensors file that holds a model nor an index",
    "{model_dir} has neither model.safetensors nor other weights in safetensors format; {hint}.",
    ModelError,
)
WEIGHTS_INCOMPLETE = Failure(
    "weights-incomplete",
    "files that the index names, or that the numbering of the others implies, are missing",
    "{model_dir} lacks {num_missing} of {num_files} weight files {told_by} (such as {missing}): {advice}.",
    ModelError,
)
INDEX_EMPTY = Failure(
    "index-empty",
    "the index of the weights names nothing",
    "{index} is not a weight index, because it names no files: download the model again, or try another revision.",
    ModelError,
)
LFS_POINTER = Failure(
    "lfs-pointer",
    "a file of the model is the pointer that Git LFS leaves in place of a large file",
    "{file} is a Git LFS pointer, not the file itself: run `git lfs pull` in {directory}, or download the model with "
    "`tgis download-weights`.",
    ModelError,
)
WEB_PAGE = Failure(
    "web-page",
    "a file of the model begins with HTML or XML",
    "{file} is a web page, probably sent by a proxy or a login service instead of the file: download it again.",
    ModelError,
)
WEIGHTS_TRUNCATED = Failure(
    "weights-truncated",
    "a weight file is shorter or longer than its header says",
    "{file} has {size} bytes, but its header says {expected}: {problem}; download it again.",
    ModelError,
)
WEIGHTS_NO_HEADER = Failure(
    "weights-no-header",
    "a weight file has no header, or one that does not parse",
    "{file} is not a safetensors file ({reason}): download it again, or remove it if it is something else.",
    ModelError,
)
WEIGHTS_UNREADABLE = Failure(
    "weights-unreadable",
    "reading a weight file fails",
    "{file} cannot be read ({reason}): check that it exists and is complete, and that this user may read it.",
    ModelError,
)
TENSOR_MISSING = Failure(
    "tensor-missing",
    "the weights lack a tensor",
    "{model_dir} has no tensor {tensor}, which a {family} model with {num_layers} layers needs: the files do not "
    "belong to this config.json, or some are missing.",
    ModelError,
)
HEAD_MISSING = Failure(
    "head-missing",
    "the weights lack the output head, and `config.json` does not say that it is tied",
    "{model_dir} has no {tensor}, and config.json does not say that the embedding is also the output head: if it is, "
    "set tie_word_embeddings to true there. Otherwise the model does not generate text (it may be an embedding model), "
    "or files are missing.",
    ModelError,
)
TENSOR_AMBIGUOUS = Failure(
    "tensor-ambiguous",
    "two tensors of the same name differ, and no index says which one to use",
    "{tensor} exists twice with different contents, as {first} and as {second}: {advice}.",
    ModelError,
)
TENSOR_SHAPE = Failure(
    "tensor-shape",
    "the shape of a tensor differs from `config.json`",
    "{file}: tensor {tensor} has shape {shape}, but config.json asks for {expected}: the files do not belong together.",
    ModelError,
)
TENSOR_DTYPE = Failure(
    "tensor-dtype",
    "a tensor is quantized",
    "{file}: tensor {tensor} is stored as {dtype}, but the native engine reads only {dtypes}: use an unquantized "
    "checkpoint.",
    ModelError,
)
TOKENIZER_UNREADABLE = Failure(
    "tokenizer-unreadable",
    "a file of the tokenizer does not load",
    "{file} cannot be read: {reason}. Download it again.",
    ModelError,
)
TOKENIZER_NOT_UNDERSTOOD = Failure(
    "tokenizer-not-understood",
    "`tokenizer.json` is complete, but uses features that the library does not know",
    "tokenizers {version} does not understand {file} ({reason}): upgrade tokenizers if a newer version saved the "
    "file, or download the file again.",
    ModelError,
)
DECODER_NOT_SUPPORTED = Failure(
    "decoder-not-supported",
    "the tokenizer's decoder needs the whole text",
    "The tokenizer decodes with {found}, which cannot decode token by token. Use a model whose tokenizer.json "
    "decodes with {supported}.",
    ModelError,
)
NO_TOKENIZER = Failure(
    "no-tokenizer",
    "the model directory has no `tokenizer.json`",
    "No existing fast tokenizer (tokenizer.json) found in {model_dir}. Make one with "
    "`tgis convert-to-fast-tokenizer`, or save one there with "
    "`AutoTokenizer.from_pretrained(...).save_pretrained(...)`.",
    ModelError,
)
