"""A small job, schedulers and workers to run it on, and certificates for them."""

from __future__ import annotations

import datetime
import ipaddress
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import distributed
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import pipeline
from pipeline.config.job_settings import JobSettings, make_job
from pipeline.sources.arrays import from_arrays

DASK = Path(sys.executable).parent / "dask"


def small_store(folder: Path, samples: int = 60, shard: int = 8) -> Path:
    """Make an image set of two splits, in as many partitions as shards."""
    rng = np.random.default_rng(0)
    arrays = {
        split: (
            rng.integers(0, 255, (samples, 4, 4), np.uint8),
            rng.integers(0, 2, samples).astype("i4"),
        )
        for split in ("train", "test")
    }
    return pipeline.ingest(
        from_arrays(arrays, ["no", "yes"]), folder / "images.zarr", shard_samples=shard
    )


def small_job(folder: Path, name: str, cluster: object = None, **more: object) -> JobSettings:
    """Return a job on `small_store`; without a cluster it names none."""
    given = {} if cluster is None else {"cluster": cluster}
    content = {"name": name, "images": str(folder / "images.zarr"), "output": str(folder / name)}
    return make_job(content | given | more)


def run_digest(settings: JobSettings, reporter: object = None) -> str:
    """Run a job and return its digest."""
    return pipeline.describe(pipeline.run_job(settings, reporter).path)["digests"]["run"]


@contextmanager
def scheduler(security: distributed.Security | None = None, **options) -> Iterator[str]:
    """Run a scheduler in this process, without workers; yields its address."""
    defaults = {"n_workers": 0, "processes": True, "dashboard_address": None, "host": "127.0.0.1"}
    with distributed.LocalCluster(security=security, **(defaults | options)) as cluster:
        yield cluster.scheduler_address


@contextmanager
def dask_worker(address: str, *words: str, address_space: int | None = None) -> Iterator[None]:
    """Run a real `dask worker` process, with a limit of address space in bytes."""
    command = [str(DASK), "worker", address, "--no-dashboard", *words]
    limit = "" if address_space is None else f"ulimit -v {address_space // 1024}; "
    process = subprocess.Popen(
        ["bash", "-c", f'{limit}exec "$@"', "bash", *command],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "False"},
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def make_certificates(folder: Path) -> None:
    """Write ca.pem, and NAME.pem with NAME-key.pem of dask and of a stranger."""
    for authority, name in (("ca", "dask"), ("other-ca", "stranger")):
        key, certificate = _certificate(authority, None, None)
        _write(folder / f"{authority}.pem", certificate)
        own_key, own = _certificate(name, certificate.subject, key)
        _write(folder / f"{name}.pem", own)
        (folder / f"{name}-key.pem").write_bytes(
            own_key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )


def _write(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _certificate(name, issuer, signer):
    """Make a key and its certificate, signed by `signer`, or by itself as an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
    )
    return key, builder.sign(signer or key, hashes.SHA256())


def security(folder: Path, name: str = "dask", authority: str = "ca") -> distributed.Security:
    """Return what a scheduler, its workers or a client of that name talk TLS with."""
    pair = {
        f"tls_{role}_{what}": str(folder / file)
        for role in ("scheduler", "worker", "client")
        for what, file in (("cert", f"{name}.pem"), ("key", f"{name}-key.pem"))
    }
    return distributed.Security(
        tls_ca_file=str(folder / f"{authority}.pem"), require_encryption=True, **pair
    )
