"""Passwords are argon2id at the cost that RFC 9106 recommends."""

from __future__ import annotations

import pytest
from argon2 import PasswordHasher, Type, extract_parameters

from backend import passwords
from backend.passwords import PasswordError, hash_password, is_outdated, matches, one_time_password

PASSWORD = "a few words will do"


def test_what_is_kept_is_costly_and_matches_only_the_password():
    kept = hash_password(PASSWORD)
    cost = extract_parameters(kept)
    assert cost.type is Type.ID
    assert cost.memory_cost >= 64 * 1024  # KiB
    assert cost.time_cost >= 3
    assert PASSWORD not in kept
    assert kept != hash_password(PASSWORD)  # salted
    assert matches(kept, PASSWORD)
    assert not matches(kept, PASSWORD + " ")
    assert not matches(kept, "")


@pytest.mark.usefixtures("cheap_passwords")
@pytest.mark.parametrize("kept", [None, "", "not a hash", "$argon2id$v=19$m=8,t=1,p=1$broken"])
def test_what_is_no_hash_matches_nothing(kept):
    assert not matches(kept, PASSWORD)


@pytest.mark.usefixtures("cheap_passwords")
def test_no_password_costs_as_much_as_a_wrong_one(monkeypatch):
    kept, verified, verify = hash_password(PASSWORD), [], passwords._hasher.verify
    matches(None, "warm up")

    class Counting:
        def verify(self, known: str, given: str) -> bool:
            verified.append((extract_parameters(known), given))
            return verify(known, given)

    monkeypatch.setattr(passwords, "_hasher", Counting())
    assert not matches(None, "guess")
    assert not matches(kept, "guess")
    assert len(verified) == 2
    assert verified[0] == verified[1]  # at the same cost


@pytest.mark.usefixtures("cheap_passwords")
@pytest.mark.parametrize("password", ["", "short", "x" * 11, "x" * 1001])
def test_too_short_or_too_long(password):
    with pytest.raises(PasswordError, match="characters"):
        hash_password(password)


@pytest.mark.usefixtures("cheap_passwords")
def test_a_dearer_cost_makes_the_old_ones_outdated(monkeypatch):
    kept = hash_password(PASSWORD)
    assert not is_outdated(kept)
    monkeypatch.setattr(passwords, "_hasher", PasswordHasher(time_cost=2, memory_cost=16, parallelism=1))
    assert is_outdated(kept)
    assert matches(kept, PASSWORD)


def test_one_time_passwords_differ_and_may_be_taken():
    made = {one_time_password() for _ in range(100)}
    assert len(made) == 100
    assert all(len(password) >= passwords.SHORTEST for password in made)
