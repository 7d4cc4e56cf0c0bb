"""The deployment's own certificate authority: made once, signs what devices and the broker show.

Certificates are X.509 (RFC 5280) with keys on the curve P-256; a device's common name is its name at
the broker.
"""

import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from metering.credentials.rights import checked_common_name
from metering.errors import InvalidValue
from metering.settings import Settings

DEVICE_DAYS = 825
"""How long a device's certificate is good, unless it is asked for otherwise."""
_AUTHORITY_DAYS = 20 * 365
_SERVER_DAYS = 825
_LIST_DAYS = 10 * 365
"""A list is written anew at each revocation; one that expires would lock every device out."""
_CLOCK_SKEW = timedelta(minutes=5)
_RSA_BITS_MIN = 2048
_SHA256 = hashes.SHA256()
_ON_HOLD = x509.CRLReason(x509.ReasonFlags.certificate_hold)


def authority_folder(settings: Settings) -> Path:
    """Return the folder of the authority that signs devices' certificates."""
    return settings.authority_dir or settings.data_dir.expanduser().resolve() / "stack/authority"


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate: its PEM, its serial number in hexadecimal, and its end."""

    pem: bytes
    serial: str
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A certificate that gets nobody in: revoked for good, or on hold until it is listed no more.

    `serial` is in hexadecimal, `at` is since when.
    """

    serial: str
    at: datetime
    is_on_hold: bool


def listed_in(pem: bytes) -> set[tuple[str, bool]]:
    """Return the serial numbers of a list (PEM), and whether each is on hold."""
    return {
        (f"{each.serial_number:x}", _ON_HOLD in [one.value for one in each.extensions])
        for each in x509.load_pem_x509_crl(pem)
    }


class Authority:
    """A certificate and its key, in `authority.pem` and `authority.key` of a folder."""

    def __init__(
        self,
        certificate: x509.Certificate,
        key: EllipticCurvePrivateKey,
        list_url: str | None = None,
    ) -> None:
        self._certificate = certificate
        self._key = key
        self._list_url = list_url

    @classmethod
    def open(cls, folder: Path, *, list_url: str | None = None) -> "Authority":
        """Read an authority; raises `InvalidValue` when the folder has none.

        `list_url` is where whoever checks a client's certificate finds the list of the revoked ones
        (RFC 5280, §4.2.1.13).
        """
        try:
            certificate = x509.load_pem_x509_certificate((folder / "authority.pem").read_bytes())
            key = serialization.load_pem_private_key(
                (folder / "authority.key").read_bytes(), password=None
            )
        except FileNotFoundError:
            raise InvalidValue(
                "authority_dir", f"{folder} has no authority", "run `fleetmeter stack up`"
            ) from None
        if not isinstance(key, EllipticCurvePrivateKey):
            raise InvalidValue("authority_dir", "the key is of another kind", "make a new one")
        return cls(certificate, key, list_url)

    @classmethod
    def open_or_make(cls, folder: Path, name: str, *, now: datetime) -> "Authority":
        """Read an authority, or make one in a folder that has none; its key is of mode 0600."""
        if not (folder / "authority.pem").exists():
            key = ec.generate_private_key(ec.SECP256R1())
            subject = _name(name)
            certificate = (
                x509.CertificateBuilder()
                .subject_name(subject)
                .issuer_name(subject)
                .public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - _CLOCK_SKEW)
                .not_valid_after(now + timedelta(days=_AUTHORITY_DAYS))
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(_usage(signs_certificates=True), critical=True)
                .add_extension(
                    x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
                )
                .sign(key, _SHA256)
            )
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(folder / "authority.key", key_pem(key))
            write_private(folder / "authority.pem", _pem(certificate))  # last: it says that all is
        return cls.open(folder)

    @property
    def pem(self) -> bytes:
        """The authority's own certificate."""
        return _pem(self._certificate)

    def sign_request(
        self, request_pem: bytes, username: str, *, now: datetime, days: int
    ) -> Issued:
        """Sign a device's request (PKCS #10), whatever name it asks for: `username` is what it gets.

        Raises `InvalidValue` when it is no request, or its key is too weak.
        """
        return self.issue(_requested_key(request_pem), username, now=now, days=days)

    def issue(
        self,
        public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
        username: str,
        *,
        now: datetime,
        days: int,
    ) -> Issued:
        """Issue a client's certificate; a negative number of `days` makes one that has expired."""
        builder = self._builder(public_key, checked_common_name(username)).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        if self._list_url is not None:
            point = x509.DistributionPoint(_place(self._list_url), None, None, None)
            builder = builder.add_extension(x509.CRLDistributionPoints([point]), critical=False)
        return self._signed(builder, now=now, days=days)

    def issue_server(
        self, key: EllipticCurvePrivateKey, names: Sequence[str], *, now: datetime
    ) -> Issued:
        """Issue a server's certificate for host names and addresses."""
        builder = (
            self._builder(key.public_key(), names[0])
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False
            )
        )
        return self._signed(builder, now=now, days=_SERVER_DAYS)

    def has_signed(self, pem: bytes) -> bool:
        """Whether a certificate is of this authority."""
        try:
            x509.load_pem_x509_certificate(pem).verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def revocation_list(
        self,
        revoked: Iterable[Listed],
        *,
        previous: bytes | None,
        now: datetime,
        for_url: bool = False,
    ) -> bytes:
        """Return the list (PEM) of certificates that are revoked, or on hold (§5.3.1), each with its time.

        It is dated after the `previous` one, also within a second of it: a broker that has both goes
        by the later. So each is dated a day back, which leaves room.

        The one that is fetched by its URL says so (§5.2.5), as EMQX wants it; it is good for certificates
        that name the URL alone, so the broker that reads a file gets one without.
        """
        dated = now - timedelta(days=1)
        if previous is not None:
            last = x509.load_pem_x509_crl(previous).last_update_utc
            dated = max(dated, last + timedelta(seconds=1))
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(dated)
            .next_update(now + timedelta(days=_LIST_DAYS))
        )
        for each in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(int(each.serial, 16))
            if each.is_on_hold:
                entry = entry.add_extension(_ON_HOLD, critical=False)
            builder = builder.add_revoked_certificate(entry.revocation_date(each.at).build())
        if for_url and self._list_url is not None:
            builder = builder.add_extension(
                x509.IssuingDistributionPoint(
                    full_name=_place(self._list_url),
                    relative_name=None,
                    only_contains_user_certs=False,
                    only_contains_ca_certs=False,
                    only_some_reasons=None,
                    indirect_crl=False,
                    only_contains_attribute_certs=False,
                ),
                critical=True,
            )
        return builder.sign(self._key, _SHA256).public_bytes(serialization.Encoding.PEM)

    def _builder(
        self, public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, name: str
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )

    def _signed(self, builder: x509.CertificateBuilder, *, now: datetime, days: int) -> Issued:
        end = now + timedelta(days=days)
        begin = min(now, end) - _CLOCK_SKEW
        certificate = builder.not_valid_before(begin).not_valid_after(end).sign(self._key, _SHA256)
        return Issued(
            pem=_pem(certificate),
            serial=f"{certificate.serial_number:x}",
            not_after=certificate.not_valid_after_utc,
        )


def _place(url: str) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(url)]


def new_key() -> EllipticCurvePrivateKey:
    """Return a new key on the curve P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: EllipticCurvePrivateKey) -> bytes:
    """Return a key as PEM (PKCS #8), not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_private(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file all or nothing; it never is readable to more than `mode` says."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def server_names(pem: bytes) -> set[str]:
    """Return the host names and addresses that a server's certificate is good for."""
    certificate = x509.load_pem_x509_certificate(pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


def is_good_until(pem: bytes, instant: datetime) -> bool:
    """Whether a certificate still is good at an instant."""
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc > instant.astimezone(UTC)


def _requested_key(request_pem: bytes) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    use = "send a PKCS #10 request in PEM, of a key on P-256 or of RSA with 2048 bits or more"
    try:
        request = x509.load_pem_x509_csr(request_pem)
        key = request.public_key()
        is_signed = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        raise InvalidValue("csr", "not a request for a certificate", use) from None
    if not is_signed:
        raise InvalidValue("csr", "not signed by its own key", use)
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _RSA_BITS_MIN:
        return key
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key
    raise InvalidValue("csr", "its key is too weak, or of another kind", use)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
