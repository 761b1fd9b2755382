"""ML-KEM-768 by the book (FIPS 203), for the test vectors: slow, not in constant time, and with its randomness as an argument.

`cryptography` has ML-KEM too, but chooses the randomness of an encapsulation itself and keeps private keys as seeds; `check` holds this file
against it.
"""

from __future__ import annotations

import hashlib

Q, N, K, ETA, DU, DV = 3329, 256, 3, 2, 10, 4


def _bit_reversed(n: int) -> int:
    return int(f"{n:07b}"[::-1], 2)


ZETAS = [pow(17, _bit_reversed(n), Q) for n in range(128)]
GAMMAS = [pow(17, 2 * _bit_reversed(n) + 1, Q) for n in range(128)]

Poly = list[int]


def ntt(f: Poly) -> Poly:
    """Algorithm 9."""
    f, i, length = f[:], 1, 128
    while length >= 2:
        for start in range(0, N, 2 * length):
            zeta, i = ZETAS[i], i + 1
            for j in range(start, start + length):
                t = zeta * f[j + length] % Q
                f[j], f[j + length] = (f[j] + t) % Q, (f[j] - t) % Q
        length //= 2
    return f


def inverse_ntt(f: Poly) -> Poly:
    """Algorithm 10."""
    f, i, length = f[:], 127, 2
    while length <= 128:
        for start in range(0, N, 2 * length):
            zeta, i = ZETAS[i], i - 1
            for j in range(start, start + length):
                t = f[j]
                f[j], f[j + length] = (t + f[j + length]) % Q, zeta * (f[j + length] - t) % Q
        length *= 2
    return [x * 3303 % Q for x in f]


def multiply(f: Poly, g: Poly) -> Poly:
    """Algorithms 11 and 12."""
    out = []
    for i in range(128):
        (a0, a1), (b0, b1) = f[2 * i : 2 * i + 2], g[2 * i : 2 * i + 2]
        out += [(a0 * b0 + a1 * b1 * GAMMAS[i]) % Q, (a0 * b1 + a1 * b0) % Q]
    return out


def add(*polys: Poly) -> Poly:
    return [sum(column) % Q for column in zip(*polys, strict=True)]


def encode(f: Poly, bits: int) -> bytes:
    """Algorithm 5."""
    return sum(x << (bits * i) for i, x in enumerate(f)).to_bytes(32 * bits, "little")


def decode(data: bytes, bits: int) -> Poly:
    """Algorithm 6."""
    whole, mask = int.from_bytes(data, "little"), (1 << bits) - 1
    return [(whole >> (bits * i) & mask) % (Q if bits == 12 else 1 << bits) for i in range(N)]


def compress(f: Poly, bits: int) -> Poly:
    return [((x << bits) + Q // 2) // Q % (1 << bits) for x in f]


def decompress(f: Poly, bits: int) -> Poly:
    return [(x * Q + (1 << (bits - 1))) >> bits for x in f]


def sample_ntt(seed: bytes) -> Poly:
    """Algorithm 7."""
    out: Poly = []
    stream = hashlib.shake_128(seed).digest(1344)
    for at in range(0, len(stream), 3):
        a, b, c = stream[at : at + 3]
        out += [d for d in (a | (b & 15) << 8, b >> 4 | c << 4) if d < Q]
    return out[:N]


def sample_cbd(seed: bytes, n: int) -> Poly:
    """Algorithm 8 of PRF output."""
    bits = int.from_bytes(hashlib.shake_256(seed + bytes([n])).digest(64 * ETA), "little")
    bit = lambda i: bits >> i & 1  # noqa: E731
    return [(bit(4 * i) + bit(4 * i + 1) - bit(4 * i + 2) - bit(4 * i + 3)) % Q for i in range(N)]


def matrix(rho: bytes) -> list[list[Poly]]:
    return [[sample_ntt(rho + bytes([j, i])) for j in range(K)] for i in range(K)]


def generate(d: bytes, z: bytes) -> tuple[bytes, bytes]:
    """Algorithm 16: encapsulation key and decapsulation key."""
    seeds = hashlib.sha3_512(d + bytes([K])).digest()
    rho, sigma = seeds[:32], seeds[32:]
    s = [ntt(sample_cbd(sigma, n)) for n in range(K)]
    e = [ntt(sample_cbd(sigma, K + n)) for n in range(K)]
    t = [add(e[i], *(multiply(row[j], s[j]) for j in range(K))) for i, row in enumerate(matrix(rho))]
    ek = b"".join(encode(f, 12) for f in t) + rho
    return ek, b"".join(encode(f, 12) for f in s) + ek + hashlib.sha3_256(ek).digest() + z


def encapsulate(ek: bytes, m: bytes) -> tuple[bytes, bytes]:
    """Algorithm 17: shared secret and ciphertext."""
    both = hashlib.sha3_512(m + hashlib.sha3_256(ek).digest()).digest()
    secret, r = both[:32], both[32:]
    t, rho = [decode(ek[384 * i :][:384], 12) for i in range(K)], ek[384 * K :]
    a = matrix(rho)
    y = [ntt(sample_cbd(r, n)) for n in range(K)]
    e1 = [sample_cbd(r, K + n) for n in range(K)]
    u = [add(inverse_ntt(add(*(multiply(a[j][i], y[j]) for j in range(K)))), e1[i]) for i in range(K)]
    mu = decompress(decode(m, 1), 1)
    v = add(inverse_ntt(add(*(multiply(t[j], y[j]) for j in range(K)))), sample_cbd(r, 2 * K), mu)
    return secret, b"".join(encode(compress(f, DU), DU) for f in u) + encode(compress(v, DV), DV)


def check(d: bytes, z: bytes, m: bytes) -> None:
    """Raises when `cryptography` sees it otherwise."""
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

    other = MLKEM768PrivateKey.from_seed_bytes(d + z)
    ek, _ = generate(d, z)
    if other.public_key().public_bytes_raw() != ek:
        raise ValueError("another encapsulation key")
    secret, ciphertext = encapsulate(ek, m)
    if other.decapsulate(ciphertext) != secret:
        raise ValueError("another secret")
