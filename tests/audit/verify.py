#!/usr/bin/env python3
"""A second verifier of trails and extracts, written from src/manual/format.md alone, with nothing but Python's standard library.

    verify.py trail DIRECTORY --key VKEY [--hmac-key HEX]
    verify.py extract FILE --key VKEY [--hmac-key HEX]

Prints what it found and ends with 0; or says what is wrong and ends with 1. It verifies Ed25519 and HMAC; ECDSA it leaves to others.
"""

import base64
import datetime
import gzip
import hashlib
import hmac
import json
import pathlib
import re
import sys

LINE_MAX, NOTE_MAX, ROW_MAX, GROUP_MAX = 16384, 16384, 131072, 65536


class Wrong(Exception):
    """What is wrong."""


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def unbase64(text):
    """Base64 with padding, written in the one way alone."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Wrong(f"not base64: {text!r}") from error
    if base64.b64encode(raw).decode() != text:
        raise Wrong(f"not base64 in its one form: {text!r}")
    return raw


def hash_of(text):
    raw = unbase64(text)
    if len(raw) != 32:
        raise Wrong(f"not a hash: {text!r}")
    return raw


def load(data):
    """A JSON object in which no name stands twice."""

    def once(pairs):
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names):
            raise Wrong("a name stands twice")
        return dict(pairs)

    try:
        value = json.loads(data, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise Wrong(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Wrong("not a JSON object")
    return value


# --- Ed25519 (RFC 8032, section 6, without its speed) ---------------------------------------------------------------------------------

P = 2**255 - 19
Q = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P


def add(a, b):
    x, y, z, t = ((a[1] - a[0]) * (b[1] - b[0]), (a[1] + a[0]) * (b[1] + b[0]), 2 * a[2] * b[2], 2 * a[3] * b[3] * D)
    e, f, g, h = (y - x) % P, (z - t) % P, (z + t) % P, (y + x) % P
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(number, point):
    result = (0, 1, 1, 0)
    while number:
        if number & 1:
            result = add(result, point)
        point, number = add(point, point), number >> 1
    return result


def same(a, b):
    return (a[0] * b[2] - b[0] * a[2]) % P == 0 and (a[1] * b[2] - b[1] * a[2]) % P == 0


def unpack(raw):
    y = int.from_bytes(raw, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


def pack(point):
    inverse = pow(point[2], P - 2, P)
    return ((point[1] * inverse % P) | (point[0] * inverse % P & 1) << 255).to_bytes(32, "little")


BASE = unpack((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def ed25519_verify(public, text, signature):
    if len(public) != 32 or len(signature) != 64:
        return False
    key, r, s = unpack(public), unpack(signature[:32]), int.from_bytes(signature[32:], "little")
    if key is None or r is None or s >= Q:
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + public + text).digest(), "little") % Q
    return same(times(s, BASE), add(r, times(h, key)))


# --- Notes, keys, checkpoints ---------------------------------------------------------------------------------------------------------


class Key:
    def __init__(self, vkey, secret=None):
        self.name, key_id, encoded = vkey.split("+", 2)
        encoded = unbase64(encoded)
        self.kind, self.key, self.secret = encoded[0], encoded[1:], secret
        if self.kind == 2:
            raise Wrong("this program verifies no ECDSA")
        self.id = sha(self.name.encode(), b"\n", encoded)[:4]
        if self.id.hex() != key_id:
            raise Wrong("the key was mangled")

    def verifies(self, text, signature):
        if self.kind == 1:
            return ed25519_verify(self.key, text, signature)
        if self.kind == 0xFF and self.secret is not None:
            return hmac.compare_digest(hmac.digest(self.secret, text, "sha256"), signature)
        raise Wrong("the key takes its token")


def open_note(raw, key):
    """The text of a note that the key signed."""
    if len(raw) > NOTE_MAX:
        raise Wrong("the note is too long")
    try:
        whole = raw.decode()
    except UnicodeDecodeError as error:
        raise Wrong("the note is not UTF-8") from error
    text, empty, signatures = whole.rpartition("\n\n")
    if not empty or not signatures.endswith("\n") or re.search("[\x00-\x09\x0b-\x1f]", whole):
        raise Wrong("no note")
    signatures = signatures[:-1].split("\n")
    if len(signatures) > 16:
        raise Wrong("too many signatures")
    text, signed = text + "\n", False
    for line in signatures:
        found = re.fullmatch("\u2014 ([^\\s+]+) (\\S+)", line)
        raw = unbase64(found[2]) if found else b""
        if len(raw) < 5:
            raise Wrong("no signature")
        if (found[1], raw[:4]) == (key.name, key.id):
            if not key.verifies(text.encode(), raw[4:]):
                raise Wrong("the signature is not of this text")
            signed = True
    if not signed:
        raise Wrong("the key did not sign it")
    return text


def number(text):
    if not re.fullmatch("0|[1-9][0-9]{0,15}", text) or int(text) > 2**53:
        raise Wrong(f"no number: {text!r}")
    return int(text)


def checkpoint(raw, key, origin):
    """Size and root."""
    lines = open_note(raw, key).split("\n")[:-1]
    if len(lines) < 3 or "" in lines or lines[0] != origin:
        raise Wrong(f"no checkpoint of {origin}")
    return number(lines[1]), hash_of(lines[2])


# --- The tree -------------------------------------------------------------------------------------------------------------------------


def leaf_hash(line):
    return sha(b"\0", line)


def node_hash(left, right):
    return sha(b"\1", left, right)


class Frontier:
    def __init__(self, size=0, hashes=()):
        if bin(size).count("1") != len(hashes):
            raise Wrong("no frontier of this size")
        self.size, self.hashes = size, list(hashes)

    def append(self, leaf):
        size = self.size
        while size & 1:
            leaf, size = node_hash(self.hashes.pop(), leaf), size >> 1
        self.hashes.append(leaf)
        self.size += 1

    def root(self):
        if not self.hashes:
            return sha()
        root = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            root = node_hash(left, root)
        return root


def included(index, size, leaf, path, root):
    if index >= size:
        return False
    fn, sn, r = index, size - 1, leaf
    for p in path:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            r = node_hash(p, r)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node_hash(r, p)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and r == root


def consistent(first, first_root, second, second_root, path):
    if first >= second:
        return first == second and not path and first_root == second_root
    if first == 0:
        return not path and first_root == sha()
    path = list(path)
    if first & (first - 1) == 0:
        path.insert(0, first_root)
    if not path:
        return False
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for c in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = node_hash(c, fr), node_hash(c, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, c)
        fn, sn = fn >> 1, sn >> 1
    return fr == first_root and sr == second_root and sn == 0


# --- Lines and tallies ----------------------------------------------------------------------------------------------------------------


def parse_line(raw):
    line = load(raw)
    seq, time = line.get("seq"), line.get("time")
    if len(raw) > LINE_MAX or type(seq) is not int or not 0 <= seq < 2**53 or line.get("category") != "AuditEvent":
        raise Wrong("no line of a trail")
    if not isinstance(time, str) or not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time):
        raise Wrong("no time")
    datetime.datetime.strptime(time, "%Y-%m-%dT%H:%M:%S.%fZ")
    if not isinstance(line.get("account", ""), str) or not isinstance(line.get("operation"), str):
        raise Wrong("no line of a trail")
    return line


def tag_of(salt, account):
    return sha(b"keyleash.audit.tally.v1", salt, account.encode())


def join(left, right):
    if left is None and right is None:
        return None
    if right is None:
        return sha(b"\2", left)
    return sha(b"\3", right) if left is None else sha(b"\1", left, right)


def bit(tag, depth):
    return tag[depth // 8] >> 7 - depth % 8 & 1


def accounts_root(leaves, depth=0):
    """Of a list of (tag, leaf)."""
    if not leaves:
        return None
    if depth == 32:
        if len(leaves) > 1:
            raise Wrong("two accounts have the same position")
        return leaves[0][1]
    sides = [accounts_root([leaf for leaf in leaves if bit(leaf[0], depth) == side], depth + 1) for side in (0, 1)]
    return join(*sides)


def check_tally(line, first, since, accounts):
    """`accounts`: the leaf hashes of each account's lines of the group."""
    salt = unbase64(line["salt"])
    leaves = []
    for account, hashes in accounts.items():
        tag = tag_of(salt, account)
        leaves.append((tag, sha(b"\0", tag, sha(*hashes))))
    root = accounts_root(leaves) or bytes(32)
    told = (line["first"], line.get("since"), line["accounts"], hash_of(line["root"]))
    if len(salt) != 16 or told != (first, since, len(leaves), root):
        raise Wrong(f"the tally {line['seq']} does not tell of the lines in front of it")


# --- A trail --------------------------------------------------------------------------------------------------------------------------


def read_lines(directory):
    """Each line, with the hour of its file and whether it is the first there."""
    files = {}
    for path in directory.glob("y=*/m=*/d=*/h=*/m=00/PT1H.json*"):
        found = re.fullmatch(r"y=(\d{4})/m=(\d\d)/d=(\d\d)/h=(\d\d)/m=00/PT1H\.json(\.gz)?", str(path.relative_to(directory)))
        if found and (not found[5] or not path.with_suffix("").exists()):
            files["{}-{}-{}T{}".format(*found.groups()[:4])] = path
    for hour, path in sorted(files.items()):
        raw = path.read_bytes()
        try:
            raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        except (OSError, EOFError) as error:
            raise Wrong(f"{path}: {error}") from error
        lines = raw.split(b"\n")
        if lines.pop() and hour != max(files):
            raise Wrong(f"{path} ends within a line")
        for at, line in enumerate(lines):
            yield line, hour, at == 0


def read_checkpoints(directory, key, origin):
    path, found = directory / "checkpoints", []
    raw = path.read_bytes() if path.exists() else b""
    while raw:
        text, _, rest = raw.partition(b"\n\n")
        signatures, end, rest = rest.partition(b"\n\n")
        if "\u2014 ".encode() in text:
            raise Wrong("no empty line stands between text and signatures")
        if not end:
            break
        found.append(checkpoint(text + b"\n\n" + signatures + b"\n", key, origin))
        if len(found) > 1 and found[-1][0] < found[-2][0]:
            raise Wrong("an older checkpoint stands behind a newer one")
        raw = rest
    return found


def verify_trail(directory, key):
    origin = f"{key.name}/{directory.resolve().name}"
    tree, first, since, accounts = Frontier(), 0, None, {}
    retained = directory / "retained"
    if retained.exists():
        lines = open_note(retained.read_bytes(), key).split("\n")[:-1]
        if lines[0] != f"{origin}/retained":
            raise Wrong("retained is of another trail")
        size = number(lines[1])
        tree = Frontier(size, [hash_of(line) for line in lines[2 : 2 + bin(size).count("1")]])
        accounts = None if size else {}
    begins, checkpoints = tree.size, read_checkpoints(directory, key, origin)
    roots, seen = {}, 0
    for size, root in checkpoints:
        if roots.setdefault(size, root) != root:
            raise Wrong(f"two checkpoints of {size} lines differ")
    covered = begins

    def compare():
        nonlocal covered
        if tree.size in roots:
            if roots[tree.size] != tree.root():
                raise Wrong(f"the lines up to {tree.size} do not lead to their checkpoint: one of {covered} to {tree.size - 1} is another")
            covered = tree.size

    compare()
    for raw, hour, is_first in read_lines(directory):
        line = parse_line(raw)
        if line["seq"] < begins and tree.size == begins:
            continue
        if line["seq"] != tree.size:
            raise Wrong(f"line {tree.size} should stand where line {line['seq']} stands")
        if line["time"][:13] > hour or is_first and line["time"][:13] != hour:
            raise Wrong(f"line {line['seq']} stands in the file of another hour")
        leaf, seen = leaf_hash(raw), seen + 1
        if line["operation"] == "Tally":
            frontier = Frontier(line["seq"], [hash_of(text) for text in line["frontier"]])
            if frontier.hashes != tree.hashes:
                raise Wrong(f"the frontier of tally {line['seq']} is not that of the lines in front of it")
            if accounts is not None:
                check_tally(line, first, since, accounts)
            first, since, accounts = line["seq"] + 1, line["time"], {}
        elif accounts is not None:
            if tree.size - first >= GROUP_MAX:
                raise Wrong(f"no tally in front of line {line['seq']}")
            if "account" in line:
                accounts.setdefault(line["account"], []).append(leaf)
        tree.append(leaf)
        compare()
    if checkpoints and checkpoints[-1][0] > tree.size:
        raise Wrong(f"{checkpoints[-1][0]} lines were signed, and {tree.size} are there: the end was cut")
    if not checkpoints and (seen or begins):
        raise Wrong("nothing is signed")
    return {"origin": origin, "lines": seen, "covered": covered, "uncovered": tree.size - covered, "checkpoints": len(checkpoints)}


# --- An extract -----------------------------------------------------------------------------------------------------------------------


def check_group(tally, row, account, leaves):
    tag = tag_of(unbase64(tally["salt"]), account)
    here = None
    if leaves:
        here = sha(b"\0", tag, sha(*leaves))
    elif "other" in row:
        other = hash_of(row["other"]["tag"])
        if other == tag or other[:4] != tag[:4]:
            raise Wrong("another account is shown that is none at this position")
        here = sha(b"\0", other, hash_of(row["other"]["entry"]))
    path = [hash_of(text) if text else None for text in row["path"]]
    if len(path) > 32:
        raise Wrong("the path is too long")
    path += [None] * (32 - len(path))
    for depth in reversed(range(32)):
        here = join(path[depth], here) if bit(tag, depth) else join(here, path[depth])
    if (here or bytes(32)) != hash_of(tally["root"]):
        raise Wrong(f"of the account's lines in front of tally {tally['seq']} some were left out or added")


def late(time, seconds):
    """A time, so much later."""
    form = "%Y-%m-%dT%H:%M:%S.%f"
    later = datetime.datetime.strptime(time[:-1], form) + datetime.timedelta(seconds=seconds)
    return later.strftime(form)[:-3] + "Z"


def verify_part(rows, key):
    """One node's part of an extract."""
    header = rows.pop(0)
    if header.get("extract") != "keyleash.audit.extract.v1" or not header["origin"].startswith(key.name + "/"):
        raise Wrong("no extract of this trail")
    account, newest = header["account"], None
    while rows and "checkpoint" in rows[0]:
        row = rows.pop(0)
        size, root = checkpoint(row["checkpoint"].encode(), key, header["origin"])
        proof = [hash_of(text) for text in row["consistency"]]
        if not (consistent(*newest, size, root, proof) if newest else not proof):
            raise Wrong("a checkpoint does not go on from the one before")
        newest = size, root
    if newest is None:
        raise Wrong("no checkpoint")
    tally, group, leaves, shown, first, last = None, None, [], 0, None, None
    for row in rows:
        raw = row.get("tally", row.get("line")).encode()
        line = parse_line(raw)
        proof = [hash_of(text) for text in row["proof"]]
        if line["seq"] != row["seq"] or not included(row["seq"], newest[0], leaf_hash(raw), proof, newest[1]):
            raise Wrong(f"line {row['seq']} is not in the tree")
        if "tally" in row:
            if tally:
                check_group(tally, group, account, leaves)
            if line["operation"] != "Tally" or not 0 < line["seq"] - line["first"] <= GROUP_MAX:
                raise Wrong("no tally")
            if tally and (line["first"], line.get("since")) != (tally["seq"] + 1, tally["time"]):
                raise Wrong(f"the group in front of line {line['first']} was left out")
            if not tally:
                first = line
                if "since" not in line and line["first"] != 0:
                    raise Wrong("the first tally does not say since when")
            tally, group, leaves, last = line, row, [], None
        else:
            if tally is None or line["operation"] == "Tally" or line.get("account") != account:
                raise Wrong(f"line {line['seq']} is no line of this account")
            if not tally["first"] <= line["seq"] < tally["seq"] or last is not None and line["seq"] <= last:
                raise Wrong(f"line {line['seq']} stands in the wrong place")
            leaves.append(leaf_hash(raw))
            shown, last = shown + 1, line["seq"]
    if tally is None:
        raise Wrong("nothing is shown")
    check_group(tally, group, account, leaves)
    if "since" in first and (header["from"] is None or late(first["since"], 10) > header["from"]):
        raise Wrong("it begins too late")
    if late(tally["time"], -10) < header["to"]:
        raise Wrong("it ends too early")
    return {"origin": header["origin"], "account": account, "lines": shown, "first": first["first"], "end": tally["seq"]}


def verify_extract(path, key, nodes):
    rows = path.read_bytes().split(b"\n")
    if rows.pop() or any(len(row) > ROW_MAX for row in rows):
        raise Wrong("the extract was cut off, or a line is too long")
    parts = []
    for row in map(load, rows):
        if "extract" in row:
            parts.append([])
        parts[-1].append(row)
    parts = [verify_part(part, key) for part in parts]
    origins = [part["origin"] for part in parts]
    if not parts or len(set(origins)) < len(parts) or len({part["account"] for part in parts}) > 1:
        raise Wrong("the parts are not of one account and of each node once")
    missing = [node for node in nodes if f"{key.name}/{node}" not in origins]
    if missing:
        raise Wrong(f"nothing is shown of {missing}")
    return parts




def main(arguments):
    what, where, *options = arguments
    nodes = [value for name, value in zip(options[::2], options[1::2]) if name == "--node"]
    options = dict(zip(options[::2], options[1::2]))
    secret = bytes.fromhex(options["--hmac-key"]) if "--hmac-key" in options else None
    try:
        key = Key(options["--key"], secret)
        where = pathlib.Path(where)
        found = verify_trail(where, key) if what == "trail" else verify_extract(where, key, nodes)
    except (Wrong, KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        print(f"wrong: {type(error).__name__}: {error}")
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
