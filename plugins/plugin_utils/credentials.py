# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Passwords and certificates that the controller keeps in files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.edgeml.fleet.plugins.plugin_utils.addresses import alternative_name
from ansible_collections.edgeml.fleet.plugins.plugin_utils.libraries import missing_library

try:
    import bcrypt
except ImportError as error:
    _without_bcrypt: ImportError | None = error
else:
    _without_bcrypt = None

# A registry checks the password anew at each request: at cost 10 that was 60 to 100 ms of processor for each blob and
# manifest, and most of what a publication took. 5 is what `htpasswd -B` takes (Apache HTTP Server 2.4) and is 32 times
# faster; what protects the file is its mode, and a password that was drawn at random.
COST = 5


def htpasswd(accounts: Mapping[str, str], current: str = "") -> str:
    """Return an htpasswd file that admits these users (passwords by name) and nobody else.

    Lines of `current` that are right stay as they are, so that a new password of one user disturbs no other.
    """
    if _without_bcrypt:
        raise missing_library(_without_bcrypt)
    known = dict(line.partition(":")[::2] for line in current.split("\n") if line)
    return "".join(f"{name}:{_hashed(password, known.get(name, ''))}\n" for name, password in accounts.items())


def _hashed(password: str, known: str) -> str:
    """Return the bcrypt hash of a password: `known`, if it is one at this cost."""
    if f"${COST:02}$" in known[:8]:
        try:
            if bcrypt.checkpw(password.encode(), known.encode()):
                return known
        except ValueError:  # not a bcrypt hash
            pass
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(COST)).decode()


def certificate(path: str) -> dict[str, Any]:
    """Return {"path", "not_before", "not_after"} of a PEM file (seconds since the epoch), or {"path", "error"}."""
    from cryptography import x509  # with ansible-core, but not where ansible-test imports this file

    try:
        found = x509.load_pem_x509_certificate(Path(path).read_bytes())
    except OSError as error:
        return {"path": path, "error": error.strerror or str(error)}
    except ValueError:
        return {"path": path, "error": "this is no certificate in PEM"}
    return {
        "path": path,
        "not_before": found.not_valid_before_utc.timestamp(),
        "not_after": found.not_valid_after_utc.timestamp(),
    }


def certificate_problems(path: str, key: str, name: str) -> list[dict[str, str]]:
    """Return what is wrong with a server's certificate and key in PEM files, as host_preflight takes problems.

    `name` is the name or IP address that clients ask for. A certificate that cannot be read is told by `certificate`.
    """
    from cryptography import x509

    found = _certificate_in(path)
    if found is None:
        return []
    problems = _key_problems(
        found, path, key, "inference_runtime_tls_certificate_file", "inference_runtime_tls_key_file"
    )
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        carried = [f"DNS:{one}" for one in names.get_values_for_type(x509.DNSName)]
        carried += [f"IP:{one}" for one in names.get_values_for_type(x509.IPAddress)]
    except x509.ExtensionNotFound:
        carried = []
    wanted = alternative_name(name)
    kind, _separator, host = wanted.partition(":")
    wildcard = f"DNS:*.{host.partition('.')[2]}" if kind == "DNS" and "." in host else wanted
    if not {one.lower() for one in carried} & {wanted.lower(), wildcard.lower()}:
        problems.append(
            {
                "what": "The runtime's certificate is for other names than its clients ask for",
                "where": path,
                "seen": ", ".join(carried) or "no subject alternative name",
                "remedy": f"add {wanted} to the certificate, or set inference_runtime_server_name to a name in it",
            }
        )
    return problems


def client_certificate_problems(path: str, key: str) -> list[dict[str, str]]:
    """Return what is wrong with what a host presents to a mirror, as host_preflight takes problems.

    A certificate that cannot be read is told by `certificate`.
    """
    from ansible_collections.edgeml.fleet.plugins.plugin_utils.certificates import is_for_clients

    found = _certificate_in(path)
    if found is None:
        return []
    variables = ("edgeml_mirror_client_certificate_file", "edgeml_mirror_client_key_file")
    problems = _key_problems(found, path, key, *variables)
    if not is_for_clients(found):
        problems.append(
            {
                "what": "A host may not present this certificate to its mirror",
                "where": path,
                "seen": "an extended key usage without clientAuth",
                "remedy": "run the playbook edgeml.fleet.certificates, which makes its own anew, or set "
                f"{variables[0]} to a certificate for clients",
            }
        )
    return problems


def _certificate_in(path: str) -> Any:
    """Return the certificate in a PEM file, None if there is none that can be read."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(Path(path).read_bytes())
    except (OSError, ValueError):
        return None


def _key_problems(found: Any, path: str, key: str, *variables: str) -> list[dict[str, str]]:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    remedy = f"set {variables[0]} and {variables[1]} to a pair of files"
    try:
        own = load_pem_private_key(Path(key).read_bytes(), None).public_key()
        if own == found.public_key():
            return []
        what, seen = "The key is not that of the certificate", f"another key than that of {path}"
    except OSError as error:
        what, seen = "The certificate's key cannot be read", error.strerror or str(error)
    except (TypeError, ValueError):
        what, seen = "The certificate's key cannot be read", "no unencrypted private key in PEM"
    return [{"what": what, "where": key, "seen": seen, "remedy": remedy}]
