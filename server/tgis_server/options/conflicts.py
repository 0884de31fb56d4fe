"""Options that exclude or need each other."""

from __future__ import annotations

from collections.abc import Iterator

from tgis_server.options.table import ServeConfig


def find_conflicts(config: ServeConfig) -> Iterator[str]:
    """Each violated rule that involves several options, as a sentence."""
    if config.dtype and config.dtype_str and config.dtype != config.dtype_str:
        yield "dtype and dtype_str args both provided with different values"
    if config.num_gpus and config.num_shard and config.num_gpus != config.num_shard:
        yield f"NUM_GPUS and num_shard are set to different values ({config.num_gpus} and {config.num_shard})"
    if (config.tls_cert_path is None) != (config.tls_key_path is None):
        missing = "--tls-key-path" if config.tls_key_path is None else "--tls-cert-path"
        yield f"tls: must provide both cert and key: {missing} is not given."
    if config.tls_client_ca_cert_path and not config.tls_cert_path:
        yield (
            "tls: cannot provide client ca cert without keypair: --tls-client-ca-cert-path needs --tls-cert-path and "
            "--tls-key-path."
        )
    if config.http_tls != "off" and not config.tls_cert_path:
        yield f"--http-tls {config.http_tls} needs --tls-cert-path and --tls-key-path."
    if config.http_tls == "mutual" and not config.tls_client_ca_cert_path:
        yield "--http-tls mutual needs --tls-client-ca-cert-path, the CA of the clients' certificates."
    if config.grpc_port and config.grpc_port == config.port:
        yield f"--grpc-port and --port are both {config.port}: choose two different ports."
    if config.fault and not (config.rehearse or config.allow_faults):
        yield "--fault provokes failures and is accepted only with --rehearse or --allow-faults."
    if config.quantize:
        yield f"--quantize {config.quantize}: no engine in this version loads quantized weights; leave it out."
