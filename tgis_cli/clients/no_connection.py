"""Why a command has no connection, in one sentence that is the same for all commands.

gRPC hides the reason, so the connection is tried again step by step with Python's own sockets. `tgis health` uses
this module too, so it imports little.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import ssl
import time

from tgis_cli.clients.address import DEFAULT_PORTS, GRPC, HTTP, WAIT, Address, mask
from tgis_cli.clients.tls_files import TlsFiles, describe

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # with empty SETTINGS
GET = b"GET /health/live HTTP/1.0\r\n\r\n"
SETTINGS = 4  # the type of the first frame that an HTTP/2 server sends
ANSWER_S = 2.0  # for an answer to the first bytes
MAX_ANSWER = 1 << 16
NO_SERVER = "No server at "
SILENT = "The process at {target} accepts connections, but does not answer: is it hung, or not a server?"
CLIENT_CERTIFICATE = "The server at {target} requires a client certificate: --cert FILE --key FILE."

# Error codes of OpenSSL's verification, which the ssl module does not name.
NOT_YET_VALID, EXPIRED, WRONG_NAME, WRONG_IP = 9, 10, 62, 64
UNKNOWN_ISSUER = (2, 18, 19, 20, 21)
NO_CHECK_TIME = 0x200000


def explain_no_connection(address: Address, files: TlsFiles | None, timeout_s: float) -> str:
    """Try again and say at which step it fails.

    Args:
        files: for TLS; ``None``: plain text.
    """
    if address.protocol == GRPC and (sentence := explain_proxy(address)):
        return sentence
    try:
        connection = socket.create_connection((address.host, address.port), timeout_s)
    except (OSError, UnicodeError) as error:
        return explain_error(address, error, timeout_s)
    with connection:
        connection.settimeout(min(timeout_s, ANSWER_S))
        return explain_plain(address, connection) if files is None else explain_tls(address, connection, files)


def explain_proxy(address: Address) -> str:
    from tgis_server.host.proxies import find_proxy

    variable, proxy = find_proxy(address.target, os.environ)
    if not variable:
        return ""
    return (
        f"No connection to {address.target} through the proxy {mask(proxy)} ({variable}): if the server is internal, "
        f"add {address.host} to NO_PROXY."
    )


def name_flag(address: Address) -> str:
    """The option with which the user can give another address."""
    return address.source if address.source.startswith("--") else "--url"


def explain_error(address: Address, error: OSError | UnicodeError, timeout_s: float) -> str:
    """The sentence for a connection that the system refuses."""
    origin = f" (from {address.source})" if address.source.isupper() else ""
    if isinstance(error, UnicodeError):
        return f"{address.host} cannot be a host name{origin}: check its spelling."
    if isinstance(error, socket.gaierror):
        if error.errno == socket.EAI_AGAIN:
            return f"The name {address.host}{origin} cannot be resolved now: the DNS of this machine does not answer."
        return f"The name {address.host}{origin} does not resolve: check its spelling, and the DNS of this machine."
    if isinstance(error, TimeoutError):
        return (
            f"No answer from {address.target}{origin} within {timeout_s:g} s: the server is overloaded or hung, or a "
            "firewall is dropping the packets."
        )
    if error.errno == errno.ECONNREFUSED:
        if address.server is not None:
            server = f"The server of {address.server.model} (pid {address.server.pid})"
            if address.server.has_been_ready:
                return f"{server} accepts no connections now: see `tgis ps`."
            return f"{server} is still starting. {WAIT}"
        if address.source == "--metrics-url":
            return f"{NO_SERVER}{address.target}: --metrics-url has to name the server's HTTP port."
        start = f"start one with `tgis launch`, or give the address with {name_flag(address)} HOST:PORT"
        return f"{NO_SERVER}{address.target}{origin}: {start}."
    reason = error.strerror or str(error)
    return f"{address.target}{origin} cannot be reached: {reason[:1].lower() + reason[1:]}."


# -- plain text -------------------------------------------------------------------------------------------------------


def explain_plain(address: Address, connection: socket.socket) -> str:
    """Say what answers at a port that should speak plain gRPC or plain HTTP."""
    is_closed = False
    try:
        connection.sendall(PREFACE if address.protocol == GRPC else GET)
        answer = connection.recv(64)
        is_closed = not answer
    except TimeoutError:
        answer = b""
    except OSError:
        answer, is_closed = b"", True
    if answer[:2] == b"\x15\x03" or (is_closed and speaks_tls(address)):  # a TLS alert
        return explain_wanted_tls(address)
    if answer[:5] == b"HTTP/" or answer[:2] == b"<!":  # an HTTP error may be a page without headers
        if address.protocol == HTTP:
            return f"The process at {address.target} closed the connection before its answer was complete."
        return explain_http(address)
    if is_settings(answer):
        if address.protocol == HTTP:
            return explain_grpc(address)
        return f"The server at {address.target} closed a gRPC connection that it had accepted: see its log."
    return explain_stranger(address, answer, is_closed=is_closed)


def is_settings(answer: bytes) -> bool:
    return len(answer) >= 9 and answer[3] == SETTINGS and answer[0] == 0


def explain_stranger(address: Address, answer: bytes, *, is_closed: bool) -> str:
    name = "gRPC" if address.protocol == GRPC else "HTTP"
    if answer:
        greeting = answer[:20].decode("ascii", "backslashreplace").strip()
        return f"The process at {address.target} does not speak {name}; it answers {json.dumps(greeting)}."
    if is_closed:
        return f"The process at {address.target} closes the connection: it does not speak {name}."
    return SILENT.format(target=address.target)


def explain_wanted_tls(address: Address) -> str:
    scheme = "grpcs" if address.protocol == GRPC else "https"
    return (
        f"The server at {address.target} requires TLS: give its CA with --ca FILE, or write "
        f"{scheme}://{address.target} if this system trusts its CA."
    )


def explain_grpc(address: Address) -> str:
    scheme = "grpcs" if address.is_tls else "grpc"
    return (
        f"{address.target} is a gRPC port, but this command uses HTTP: write {scheme}://{address.target}, or give "
        f"the HTTP port, {DEFAULT_PORTS[HTTP]} by default."
    )


def explain_http(address: Address) -> str:
    """Name the gRPC port if this is the HTTP port of a TGIS server."""
    facts = ask_health(address)
    if facts is None:
        return f"The process at {address.target} speaks HTTP, not gRPC, and is not a TGIS server."
    port = facts.get("grpc_port")
    if not isinstance(port, int) or not 1 <= port <= 65535:
        return f"{address.target} is a TGIS server's HTTP port; gRPC uses another, {DEFAULT_PORTS[GRPC]} by default."
    target = Address(address.host, port, is_tls=False, source="").target
    return f"{address.target} is a TGIS server's HTTP port; its gRPC port is {port}: {name_flag(address)} {target}."


def ask_health(address: Address) -> dict[str, object] | None:
    """The health that an HTTP server reports; ``None`` if it is not a TGIS server, or takes too long."""
    answer, deadline = b"", time.monotonic() + ANSWER_S
    try:
        with socket.create_connection((address.host, address.port), ANSWER_S) as connection:
            connection.sendall(GET)
            while (piece := connection.recv(4096)) and len(answer) < MAX_ANSWER and time.monotonic() < deadline:
                answer += piece
        facts = json.loads(answer.partition(b"\r\n\r\n")[2])
    except (OSError, ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) and ("model" in facts or "error" in facts) else None


def speaks_tls(address: Address) -> bool:
    """Whether a process answers a TLS handshake, even with a refusal."""
    context = TlsFiles(None, None, None, None).make_context(verify=False)
    try:
        with (
            socket.create_connection((address.host, address.port), ANSWER_S) as connection,
            context.wrap_socket(connection, server_hostname=address.host),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except (OSError, ValueError):
        return False


# -- TLS --------------------------------------------------------------------------------------------------------------


def explain_tls(address: Address, connection: socket.socket, files: TlsFiles) -> str:
    """Say at which step the handshake fails."""
    try:
        return explain_after_handshake(address, shake_hands(address, connection, files), files)
    except ssl.SSLCertVerificationError as error:
        return explain_certificate(address, files, error)
    except ssl.SSLError as error:
        return explain_alert(address, files, error)
    except TimeoutError:
        return SILENT.format(target=address.target)
    except OSError:  # closed or reset
        return explain_no_tls(address, files)


def shake_hands(
    address: Address, connection: socket.socket, files: TlsFiles, context: ssl.SSLContext | None = None
) -> ssl.SSLSocket:
    # `tgis health` accepts any certificate if no CA is given, because it sends no secrets.
    context = context or files.make_context(verify=address.protocol == GRPC or files.ca is not None)
    context.set_alpn_protocols(["h2"] if address.protocol == GRPC else ["h2", "http/1.1"])
    return context.wrap_socket(connection, server_hostname=files.name or address.host)


def explain_after_handshake(address: Address, connection: ssl.SSLSocket, files: TlsFiles) -> str:
    """In TLS 1.3 a server refuses a client's certificate, or the lack of one, only after the client has finished."""
    with connection:
        if address.protocol == GRPC and connection.selected_alpn_protocol() != "h2":
            return f"The process at {address.target} speaks TLS, but not gRPC: is it an HTTPS port?"
        if address.protocol == HTTP and connection.selected_alpn_protocol() == "h2":
            return explain_grpc(address)
        connection.sendall(PREFACE if address.protocol == GRPC else GET)
        if connection.recv(64):
            return f"The server at {address.target} closed a connection that it had accepted: see its log."
    return explain_refusal(address, files)


def explain_refusal(address: Address, files: TlsFiles) -> str:
    """Say why the server ended the connection after this side had completed the handshake."""
    if files.cert is None:
        return CLIENT_CERTIFICATE.format(target=address.target)
    return (
        f"The server at {address.target} refuses the client certificate {files.cert}: it must be signed by the "
        "server's client CA, valid now, and for clientAuth if it has an extendedKeyUsage."
    )


def explain_alert(address: Address, files: TlsFiles, error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if "CERTIFICATE_REQUIRED" in reason or ("HANDSHAKE_FAILURE" in reason and files.cert is None):
        return CLIENT_CERTIFICATE.format(target=address.target)
    if "ALERT" in reason and any(word in reason for word in ("UNKNOWN_CA", "CERTIFICATE", "DECRYPT_ERROR")):
        return explain_refusal(address, files)
    if "ALERT" in reason or "UNSUPPORTED_PROTOCOL" in reason:
        return f"The server at {address.target} refuses the TLS connection ({describe(error)}): see its log."
    return explain_no_tls(address, files)


def explain_no_tls(address: Address, files: TlsFiles) -> str:
    what = "leave the files out" if files.ca or files.cert else f"write {address.protocol}://{address.target}"
    return f"The server at {address.target} does not speak TLS: {what}, if the network is trusted."


def explain_certificate(address: Address, files: TlsFiles, error: ssl.SSLCertVerificationError) -> str:
    """Why this side refuses the server's certificate."""
    whose = f"The certificate of the server at {address.target}"
    if error.verify_code in (EXPIRED, NOT_YET_VALID):
        end, start = (get_certificate(address, files).get(name, "") for name in ("notAfter", "notBefore"))
        if error.verify_code == EXPIRED:
            return f"{whose} has expired{f' on {end}' if end else ''}: renew it, or correct this machine's clock."
        return f"{whose} is not valid{f' before {start}' if start else ' yet'}: wait, or correct this machine's clock."
    if error.verify_code in (WRONG_NAME, WRONG_IP):
        from tgis_server.frontend.transport.certificate import list_names

        names = [ascii(name)[1:-1] for name in list_names(get_certificate(address, files))]  # others wrote them
        example = f" with --tls-server-name {names[0]}" if names else ": it needs a subjectAltName"
        what = ", ".join(names[:5]) or "no name"
        verb = f"; expect its name{example}" if names else example
        return f"{whose} is for {what}, not for {files.name or address.host}{verb}."
    if error.verify_code in UNKNOWN_ISSUER:
        if files.ca is None:
            return f"{whose} is not signed by a CA that this system trusts: give its CA with --ca FILE."
        return f"{whose} is not signed by the CA in {files.ca}: give the right one with --ca FILE."
    return f"{whose} is refused: {error.verify_message}."


def get_certificate(address: Address, files: TlsFiles) -> dict[str, object]:
    """The server's certificate, whatever its dates and names; empty if its CA is not trusted, or no answer comes."""
    context = files.make_context()
    context.check_hostname = False
    context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    try:
        with (
            socket.create_connection((address.host, address.port), ANSWER_S) as connection,
            shake_hands(address, connection, files, context) as secured,
        ):
            return dict(secured.getpeercert() or {})
    except (OSError, ValueError):
        return {}
