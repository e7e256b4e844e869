"""What a device needs to join: a folder with its key, the server's certificate, the experiment, and the address.

The server makes a kit for each device of the fleet, once; whoever runs it carries each kit to its device. A key in a
kit is what a device is known by, so a kit belongs on one device and nowhere else.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import tomli_w

from edgeprune._version import __version__
from edgeprune.errors import EdgePruneError

if TYPE_CHECKING:  # a device reads its kit in a process that stays small
    from edgeprune.engine.config import Experiment

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KIT, EXPERIMENT = "kit.toml", "experiment.toml"
AUTHORITY, KEY = "ca.pem", "device.key"  # of a kit for Flower
STARTUP = "flare"  # of a kit for FLARE: its own start-up kit
VALID_DAYS = 825


@dataclass(frozen=True)
class Kit:
    """``address``: where the device reaches the server, host:port."""

    name: str
    engine: str
    address: str
    edgeprune: str = __version__


@dataclass(frozen=True)
class Federation:
    """The server's folder: ``kits`` to give away, ``private`` to keep."""

    folder: Path

    @property
    def private(self) -> Path:
        """Certificate, keys' public halves, the engine's own files; nobody else may read it."""
        return self.folder / "server"

    def kit(self, name: str) -> Path:
        """The folder to carry to the device ``name``."""
        return self.folder / "kits" / quote(name, safe=" ")

    def public_key(self, name: str) -> Path:
        """The half of a device's key that the server knows it by."""
        return self.private / "keys" / f"{quote(name, safe='')}.pub"


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``"host:port"``."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise EdgePruneError(f"--address {address!r}: write it as host:port, for example 127.0.0.1:9092")
    return host, int(port)


def prepare_folder(federation: Federation) -> None:
    """Make the folder, for this user alone."""
    try:
        for folder in (federation.folder, federation.private, federation.private / "keys", federation.folder / "kits"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EdgePruneError(
            f"{federation.folder}: cannot be written ({error.strerror}); choose another --out"
        ) from None


def read_kit(folder: Path) -> Kit:
    """The kit in ``folder``. Raises :class:`EdgePruneError` if it is not one, or of another version."""
    try:
        kit = Kit(**tomllib.loads((folder / KIT).read_text(encoding="utf-8-sig")))
        split_address(kit.address)
    except OSError:
        raise EdgePruneError(f"{folder}: not a kit (no {KIT}); copy the folder that 'edgeprune serve' made") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, AttributeError, RecursionError) as error:
        raise EdgePruneError(f"{folder / KIT}: cannot be read ({error}); copy the kit again") from None
    if kit.edgeprune != __version__:
        raise EdgePruneError(
            f"{folder}: made by edgeprune {kit.edgeprune}, this is {__version__}; install the server's version here"
        )
    return kit


def write_kits(federation: Federation, experiment: Experiment, engine: str, address: str) -> None:
    """Certificates for ``address`` and a kit for every device.

    Keys that are there already stay as they are. A kit that was made before and is gone was carried to its device: it
    is not made again, since a new key would turn that device away.
    """
    from edgeprune.engine.checkpoint import write_atomically
    from edgeprune.fleet import build_fleet

    prepare_folder(federation)
    made = federation.private / "address.json"
    told = {"engine": engine, "address": address}
    if made.is_file() and (before := _told(made)) != told:
        raise EdgePruneError(
            f"{federation.folder}: its kits were made for {before}, not {told}; delete the folder to make new ones, or "
            "use the old address"
        )
    write_atomically(federation.private / EXPERIMENT, experiment.to_toml().encode())
    names, (host, port) = build_fleet(experiment.fleet).names, split_address(address)
    if engine == "flare":
        from edgeprune.engine.flare import ceremony

        ceremony.provision(federation.private, host, port, names)
    elif not made.is_file():
        _write_certificates(federation, host)
    for name in names:
        folder = federation.kit(name)
        if made.is_file() and not folder.is_dir():
            continue
        folder.mkdir(mode=0o700, exist_ok=True)
        if engine == "flare":
            shutil.copytree(ceremony.kit(federation.private, name), folder / STARTUP, dirs_exist_ok=True)
        else:
            if not federation.public_key(name).is_file():
                _write_key(folder / KEY, federation.public_key(name))
            write_atomically(folder / AUTHORITY, (federation.private / AUTHORITY).read_bytes())
        write_atomically(folder / EXPERIMENT, experiment.to_toml().encode())
        write_atomically(folder / KIT, tomli_w.dumps(asdict(Kit(name, engine, address))).encode())
    write_atomically(made, json.dumps(told).encode())


def _told(made: Path) -> Any:
    """What kits were made for."""
    try:
        return json.loads(made.read_text())
    except (OSError, ValueError) as error:
        raise EdgePruneError(
            f"{made}: cannot be read ({error}); put it back, or delete {made.parent.parent} and make new kits"
        ) from None


def secret(path: Path, blob: bytes) -> None:
    """Write a file that only this user may read."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(blob)


def _write_key(private: Path, public: Path) -> None:
    """An elliptic-curve key (P-384) as OpenSSH writes it: what Flower's nodes sign with."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from edgeprune.engine.checkpoint import write_atomically

    key = ec.generate_private_key(ec.SECP384R1())
    secret(
        private,
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        ),
    )
    write_atomically(
        public,
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH),
    )


def _write_certificates(federation: Federation, host: str) -> None:
    """An authority of this federation alone and the server's certificate. The authority's key is not kept."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    from edgeprune.engine.checkpoint import write_atomically

    now = datetime.datetime.now(datetime.timezone.utc)
    names: list[x509.GeneralName] = []
    for one in dict.fromkeys((host, "localhost", "127.0.0.1")):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(one)))
        except ValueError:
            names.append(x509.DNSName(one))

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())

    def begun(subject: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("edgeprune federation"))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        )

    root = begun("edgeprune federation", authority.public_key())
    root = root.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    leaf = begun("edgeprune server", server.public_key())
    leaf = leaf.add_extension(x509.SubjectAlternativeName(names), critical=False)
    signed_root, signed_leaf = root.sign(authority, hashes.SHA384()), leaf.sign(authority, hashes.SHA384())
    pem = serialization.Encoding.PEM
    write_atomically(federation.private / AUTHORITY, signed_root.public_bytes(pem))
    write_atomically(federation.private / "server.pem", signed_leaf.public_bytes(pem) + signed_root.public_bytes(pem))
    secret(
        federation.private / "server.key",
        server.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
