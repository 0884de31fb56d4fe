"""The console script ``grpc_healthcheck`` of vLLM's TGIS adapter, for manifests that probe with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from tgis_cli.terminal.argument_parser import ArgumentParser

DESCRIPTION = "Query a server's gRPC health service. Exit code 0: it is serving; 1: it is not, or there is none."
TIMEOUT_HELP = "Time limit of the query. [default: %(default)g]"


def main(argv: Sequence[str] | None = None) -> int:
    """Query ``grpc.health.v1`` once; return 0 if the answer is SERVING, else 1."""
    parser = ArgumentParser("grpc_healthcheck", DESCRIPTION)
    parser.add_argument(
        "--server-url", default="localhost:8033", metavar="HOST:PORT", help="Where it is. [default: %(default)s]"
    )
    parser.add_argument(
        "--service-name",
        default="fmaas.GenerationService",
        metavar="NAME",
        help="Service to query; startup, live and ready also exist. [default: %(default)s]",
    )
    parser.add_argument("--timeout", type=float, default=1.0, metavar="SECONDS", help=TIMEOUT_HELP)
    security = parser.add_mutually_exclusive_group()
    security.add_argument("--insecure", dest="is_secure", action="store_false", help="Without TLS, as is the default.")
    security.add_argument(
        "--secure",
        dest="is_secure",
        action="store_true",
        help="With TLS; GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names the CAs to trust.",
    )
    parser.set_defaults(is_secure=False)
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's C library would log errors too
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthStub

    from tgis_server.wire.grpc_channels import open_channel

    credentials = grpc.ssl_channel_credentials() if options.is_secure else None
    with open_channel(options.server_url, credentials) as channel:
        try:
            request = HealthCheckRequest(service=options.service_name)
            status = HealthStub(channel).Check(request, timeout=options.timeout).status
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    print(HealthCheckResponse.ServingStatus.Name(status))
    return 0 if status == HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
