#!/usr/bin/env python3
"""Makes the golden trail and extracts of this directory from src/manual/format.md, independently of keyleash, with the hashes and the
arithmetic of tests/audit/verify.py. They are never made anew: every release must verify the old ones."""

import base64
import gzip
import hashlib
import json
import pathlib
import shutil
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "audit"))
import verify as v  # noqa: E402

STORE, NODE = "keyleash/0123456789abcdef", "web-1"
SEED = bytes([7]) * 32


def b64(raw):
    return base64.b64encode(raw).decode()


def sign(seed, text):
    digest = hashlib.sha512(seed).digest()
    scalar = int.from_bytes(digest[:32], "little") & (1 << 254) - 8 | 1 << 254
    public = v.pack(v.times(scalar, v.BASE))
    r = int.from_bytes(hashlib.sha512(digest[32:] + text).digest(), "little") % v.Q
    commitment = v.pack(v.times(r, v.BASE))
    challenge = int.from_bytes(hashlib.sha512(commitment + public + text).digest(), "little") % v.Q
    return public, commitment + ((r + challenge * scalar) % v.Q).to_bytes(32, "little")


PUBLIC, _ = sign(SEED, b"")
KEY_ID = v.sha(STORE.encode(), b"\n\1", PUBLIC)[:4]
VKEY = f"{STORE}+{KEY_ID.hex()}+{b64(bytes([1]) + PUBLIC)}"


def note(text):
    _, signature = sign(SEED, text.encode())
    return f"{text}\n\u2014 {STORE} {b64(KEY_ID + signature)}\n"


class Trail:
    def __init__(self):
        self.lines, self.times, self.tree, self.notes = [], [], v.Frontier(), []
        self.first, self.since, self.accounts, self.frontiers = 0, None, {}, {}

    def put(self, line):
        raw = json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode()
        self.lines.append(raw)
        self.times.append(line["time"])
        if "account" in line:
            self.accounts.setdefault(line["account"], []).append(v.leaf_hash(raw))
        self.tree.append(v.leaf_hash(raw))

    def event(self, time, operation, **more):
        seq = len(self.lines)
        correlation = v.sha(bytes([seq])).hex()[:32]
        self.put({"seq": seq, "time": time, "category": "AuditEvent", "operation": operation, "result": "done", **more, "correlation": correlation})

    def tally(self, time):
        seq = len(self.lines)
        salt = v.sha(b"salt", bytes([seq]))[:16]
        leaves = [(v.tag_of(salt, account), hashes) for account, hashes in self.accounts.items()]
        root = v.accounts_root([(tag, v.sha(b"\0", tag, v.sha(*hashes))) for tag, hashes in leaves]) or bytes(32)
        since = {} if self.since is None else {"since": self.since}
        frontier = [b64(h) for h in self.tree.hashes]
        line = {"seq": seq, "time": time, "category": "AuditEvent", "operation": "Tally", "first": self.first, **since}
        self.put({**line, "accounts": len(leaves), "salt": b64(salt), "root": b64(root), "frontier": frontier})
        self.first, self.since, self.accounts = seq + 1, time, {}

    def checkpoint(self, unix):
        self.frontiers[self.tree.size] = list(self.tree.hashes)
        self.notes.append(note(f"{STORE}/{NODE}\n{self.tree.size}\n{b64(self.tree.root())}\ntime {unix}\n"))

    def write(self, directory, cut=0, compressed=()):
        shutil.rmtree(directory, ignore_errors=True)
        hours, newest = {}, ""
        for raw, time in zip(self.lines, self.times):
            newest = max(newest, time[:13])
            hours.setdefault(newest, []).append(raw)
        hours = {hour: lines for hour, lines in hours.items() if json.loads(lines[-1])["seq"] >= cut}
        for hour, lines in hours.items():
            folder = directory / "y={}/m={}/d={}/h={}/m=00".format(*hour.replace("T", "-").split("-"))
            folder.mkdir(parents=True)
            raw = b"".join(line + b"\n" for line in lines)
            if hour in compressed:
                (folder / "PT1H.json.gz").write_bytes(gzip.compress(raw, mtime=0))
            else:
                (folder / "PT1H.json").write_bytes(raw)
        (directory / "checkpoints").write_text("".join(text + "\n" for text in self.notes))
        if cut:
            frontier = v.Frontier()
            for raw in self.lines[:cut]:
                frontier.append(v.leaf_hash(raw))
            hashes = "".join(b64(h) + "\n" for h in frontier.hashes)
            (directory / "retained").write_text(note(f"{STORE}/{NODE}/retained\n{cut}\n{hashes}time 1764126000\n"))


def main():
    trail = Trail()
    trail.event("2026-11-26T00:59:58.100Z", "EngineBegin")
    trail.event("2026-11-26T00:59:58.250Z", "KekCreate", kek="tenants", kek_version=1, caller="admin")
    trail.checkpoint(1795654798)
    trail.event("2026-11-26T00:59:59.000Z", "AccountOpen", kek="tenants", kek_version=1, account="käse \"7\"", caller="web", took_us=1234)
    trail.event("2026-11-26T00:59:59.000Z", "KeyUnwrap", kek="tenants", kek_version=1, account="käse \"7\"", caller="web")
    trail.event("2026-11-26T00:59:59.900Z", "AccountOpen", kek="tenants", kek_version=1, account="b", caller="web")
    trail.checkpoint(1795654860)
    trail.tally("2026-11-26T01:00:00.010Z")
    trail.event("2026-11-26T01:00:00.000Z", "Blocks", account="b", sealed=3, sealed_bytes=4096, opened=0, opened_bytes=0)
    trail.event("2026-11-26T01:20:00.000Z", "AccountOpen", kek="tenants", kek_version=1, account="c", caller="batch")
    trail.checkpoint(1795656001)
    trail.tally("2026-11-26T02:10:00.000Z")
    trail.event("2026-11-26T02:10:00.500Z", "Denied", kek="tenants", kek_version=1)
    trail.event("2026-11-26T02:09:59.500Z", "Forbidden", account="käse \"7\"", caller="who", asked="AccountOpen")
    trail.event("2026-11-26T02:11:00.000Z", "EngineClose")
    trail.tally("2026-11-26T02:11:00.001Z")
    trail.checkpoint(1795659060)
    trail.write(HERE / "trail" / NODE, compressed=["2026-11-26T00"])
    trail.write(HERE / "trail-retained" / NODE, cut=5)
    (HERE / "trail" / "vkey").write_text(VKEY + "\n")
    print(VKEY)
    print(v.verify_trail(HERE / "trail" / NODE, v.Key(VKEY)))
    print(v.verify_trail(HERE / "trail-retained" / NODE, v.Key(VKEY)))


if __name__ == "__main__":
    main()
