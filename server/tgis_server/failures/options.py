"""Options, and the addresses, directories and files that they name (exit code 2)."""

from tgis_server.errors import UsageError
from tgis_server.failures.failure import Failure

WRONG_OPTION = Failure(
    "wrong-option",
    "an option does not accept its value, which comes from a flag, an environment variable or the config file; "
    "conflicts between options have sentences of their own",
    "{source} is {value!r}, but must be {accepted}.",
    UsageError,
)
NO_MODEL = Failure(
    "no-model",
    "`text-generation-launcher` without a model",
    "No model is given: use --model-name or MODEL_NAME (`tgis launch` has a demo model).",
    UsageError,
)
PORT_IN_USE = Failure(
    "port-in-use",
    "the address cannot be bound: `EADDRINUSE`",
    "Port {port} is already in use by {owner}: stop it, or choose another with {flag}.",
    UsageError,
)
PORT_OF_OWN_SERVER = Failure(
    "port-of-own-server",
    "the address cannot be bound, and a running server of the same user has the port",
    "Port {port} is used by your server of {model} (pid {pid}): stop it with `tgis stop {name}`, or choose another "
    "port with {flag}.",
    UsageError,
)
PORT_RESERVED = Failure(
    "port-reserved",
    "the address cannot be bound: `EACCES`",
    "Port {port} needs privileges (ports below 1024 are reserved): choose another with {flag}.",
    UsageError,
)
HOST_NOT_HERE = Failure(
    "host-not-here",
    "the address cannot be bound: `EADDRNOTAVAIL`",
    "--host {host} is not an address of this machine: use 0.0.0.0 to listen on all its addresses.",
    UsageError,
)
HOST_UNKNOWN = Failure(
    "host-unknown",
    "the host's name does not resolve",
    "--host {host} is not an address: {reason}; use 0.0.0.0 to listen on all addresses of this machine.",
    UsageError,
)
CANNOT_LISTEN = Failure(
    "cannot-listen",
    "the address cannot be bound, for another reason",
    "Cannot listen on port {port} ({flag}): {reason}; check --host and {flag}.",
    UsageError,
)
RUN_DIR_NOT_WRITABLE = Failure(
    "run-dir-not-writable",
    "the run directory cannot be created",
    "The run directory cannot be created in {parent}: {reason}. Choose a writable directory with --run-dir.",
    UsageError,
)
SOCKET_PATH_TOO_LONG = Failure(
    "socket-path-too-long",
    "a socket's path is longer than the 107 bytes that Linux allows",
    "The socket path {path} is {excess} bytes too long for a Unix socket: choose a shorter --run-dir.",
    UsageError,
)
SOCKET_DIR_NOT_WRITABLE = Failure(
    "socket-dir-not-writable",
    "the directory of a socket is missing or not writable",
    "Sockets cannot be created in {directory}: it is missing or not writable. Choose another --run-dir or "
    "--shard-uds-path.",
    UsageError,
)
SOCKET_IN_USE = Failure(
    "socket-in-use",
    "a process answers on the socket's path",
    "The socket {path} is in use by a running server: choose another --shard-uds-path.",
    UsageError,
)
SOCKET_PATH_TAKEN = Failure(
    "socket-path-taken",
    "a socket's path is taken by something else, or by another user's socket",
    "{path} is {kind} and will not be replaced: move it away, or choose another --shard-uds-path.",
    UsageError,
)
FILE_UNREADABLE = Failure(
    "option-file-unreadable",
    "a file that an option names cannot be opened",
    "{flag} {file} cannot be read: {reason}. Check that the path is correct and that this user may read the file.",
    UsageError,
)
LOG_FILE_NOT_WRITABLE = Failure(
    "log-file-not-writable",
    "the file of `--log-file` cannot be opened for writing",
    "--log-file {path} cannot be written: {reason}. Choose a writable file in an existing directory.",
    UsageError,
)
TLS_FILE_UNREADABLE = Failure(
    "tls-file-unreadable",
    "a TLS file cannot be opened",
    "TLS file {path} cannot be read: {reason}. Check that the path is correct and that this user may read the file.",
    UsageError,
)
TLS_PAIR_UNUSABLE = Failure(
    "tls-pair-unusable",
    "OpenSSL does not accept the certificate and key",
    "TLS certificate {certificate} and key {key} cannot be used together: {reason}. Both must be in PEM format, they "
    "must match, and the key must not be encrypted.",
    UsageError,
)
TLS_CLIENT_CA_UNUSABLE = Failure(
    "tls-client-ca-unusable",
    "OpenSSL does not accept the client CA",
    "TLS client CA {path} is not a PEM certificate: {reason}. Use the authority's certificate, not a key.",
    UsageError,
)
TLS_OUT_OF_DATE = Failure(
    "tls-out-of-date",
    "the server's certificate is not valid when the server starts",
    "The TLS certificate of {subject} in {path} is valid from {start} to {end}, but it is now {now}, so clients refuse "
    "the certificate: renew it, or correct this machine's clock.",
    UsageError,
)
TLS_FILES_CHANGING = Failure(
    "tls-files-changing",
    "the TLS files are replaced while the server is starting",
    "The TLS files next to {path} changed while they were being read.",
    UsageError,
)
TRACING_NOT_INSTALLED = Failure(
    "tracing-not-installed",
    "`--otlp-endpoint` without the libraries of the `tracing` extra",
    "--otlp-endpoint needs libraries that are not installed ({package}): pip install 'tgis[tracing]'.",
    UsageError,
)
CACHE_VARIABLES_DIFFER = Failure(
    "cache-variables-differ",
    "two variables of Hugging Face libraries name different caches",
    "{name} and {other} env vars can't be set to different values",
    UsageError,
)
SHARDS_DO_NOT_DIVIDE = Failure(
    "shards-do-not-divide",
    "the model's heads or MLP cannot be split into that many parts",
    "--num-shard {num_shard} does not divide this model ({heads} attention heads, {kv_heads} KV heads, MLP of {mlp}): "
    "use one of {valid}.",
    UsageError,
)
