#!/usr/bin/env python3
"""Makes the golden blocks of this directory, independently of keyleash: CMAC and AES-GCM of OpenSSL, through the package
`cryptography` (48.0 was used). Prints too what the unit tests pin: the block of the self-test and vectors of the commitment.
The files are never made anew: every release must open the old ones. This is how a reader in another language begins."""

import hashlib
import pathlib
import struct

from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.cmac import CMAC

SUITES = {1: "XAES-256-GCM", 2: "XAES-256-GCM with the KC-XAES commitment"}


def cmac(key, message):
    mac = CMAC(algorithms.AES(key))
    mac.update(message)
    return mac.finalize()


def derive_dek(aek, nonce):
    return cmac(aek, b"\0\1X\0" + nonce[:12]) + cmac(aek, b"\0\2X\0" + nonce[:12])


def commitment(aek, nonce):
    return b"".join(cmac(aek, b"XCMT" + nonce + bytes([0, 1, 0, i])) for i in (1, 2))


def seal(aek, nonce, suite, version, account, address, plaintext):
    prefix = struct.pack(">BBHI", 1, suite, 0, version)
    aad = b"keyleash.block.v1" + prefix
    aad += struct.pack(">H", len(account)) + account + struct.pack(">H", len(address)) + address
    sealed = AESGCM(derive_dek(aek, nonce)).encrypt(nonce[12:], plaintext, aad)
    header = prefix + nonce + sealed[-16:]
    if suite == 2:
        header += commitment(aek, nonce)
    return header, sealed[:-16]


def hashed(parts):
    """ObjectId::hashed: the id of an object whose name is long, or of many parts."""
    digest = hashlib.sha256(b"keyleash.object.v1")
    for part in parts:
        digest.update(struct.pack(">Q", len(part)) + part)
    return digest.digest()


def golden(path, suite, plaintext, parts=None):
    aek, version, account = bytes(range(32)), 7, "käse-7".encode()
    object_id, shown, named = bytes([0xAB]) * 16, "[0xab; 16]", ""
    if parts:
        object_id, shown = hashed(parts), "ObjectId::hashed(parts)"
        named = f"parts = {' '.join(part.hex() for part in parts)}\n"
    address = object_id + struct.pack(">Q", 9)
    nonce = bytes(range(0x20 + 0x20 * suite, 0x38 + 0x20 * suite))
    header, ciphertext = seal(aek, nonce, suite, version, account, address, plaintext)
    path.write_text(
        f"# A block of format v1, suite {suite} ({SUITES[suite]}), by blocks.py. In hex but for the version.\n"
        f'# The account is "käse-7", the address Address::object({shown}, 9).\n'
        f"aek = {aek.hex()}\nversion = {version}\naccount = {account.hex()}\n{named}address = {address.hex()}\n"
        f"nonce = {nonce.hex()}\nplaintext = {plaintext.hex()}\nheader = {header.hex()}\nciphertext = {ciphertext.hex()}\n"
    )


def main():
    key, nonce = bytes([1]) * 32, b"ABCDEFGHIJKLMNOPQRSTUVWX"
    # The first vector of C2SP, so that this program is right itself.
    assert AESGCM(derive_dek(key, nonce)).encrypt(nonce[12:], b"XAES-256-GCM", b"").hex() == (
        "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"
    )
    texts = {"empty": b"", "short": b"keyleash golden block", "long": bytes(i * 7 % 256 for i in range(1000))}
    here = pathlib.Path(__file__).parent
    print("object", hashed([b"bucket-7", b"photos/2026/11/27.jpg"]).hex())
    for suite in SUITES:
        for name, plaintext in texts.items():
            path = here / f"block-v1-suite{suite}-{name}.txt"
            if not path.exists():
                golden(path, suite, plaintext)
        path = here / f"block-v1-suite{suite}-hashed.txt"
        if not path.exists():
            golden(path, suite, texts["short"], [b"bucket-7", b"a/key/of/many/parts/" * 10, b"text/plain"])
        header, ciphertext = seal(key, nonce, suite, 1, b"self-test", struct.pack(">Q", 7), b"XAES-256-GCM")
        print("self-test", suite, header.hex(), ciphertext.hex())
    inputs = [(key, nonce), (bytes([3]) * 32, nonce), (bytes(range(32)), bytes(range(24))), (b"\xff" * 32, b"\xff" * 24)]
    for aek, nonce in inputs:
        print("commitment", aek.hex(), nonce.hex(), commitment(aek, nonce).hex())


if __name__ == "__main__":
    main()
