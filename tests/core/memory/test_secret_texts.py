"""What looks like a secret is withheld, and ordinary words and numbers are not."""

from __future__ import annotations

import pytest

from gateway.core.memory.secret_texts import WITHHELD, has_secret, withhold


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdefghijklmnop1234",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "xoxb-123456789012-abcdefghij",
        "AKIAIOSFODNN7EXAMPLE",
        "SG.abcdefghijkl_0123456.abcdefghijkl-0123456789",
        "hvs.abcdefghijkl0123456789",
        "AQ.abc-defghijkl_0123456789mnopqrstuvwxyz",
        "fw_abcdefghijkl0123456789mn",
        "tgp_v1_abc-defghijkl_0123456789mnopqrstuvwx",
        "pplx-abcdefghijkl0123456789mn",
        "csk-abcdefghijkl0123456789mn",
        "nvapi-abc-defghijkl_0123456789mn",
        "shpat_0123456789abcdef0123456789abcdef",
        "dapi0123456789abcdef0123456789abcdef",
        "lsv2_pt_0123456789abcdef0123456789abcdef_0123456789",
        "GOCSPX-abcdefghijkl-nopqrstuvwxyz_0",
        "AGE-SECRET-KEY-1QQPQRLDNTZ6G3ALL2EXAMPLE5PZRY9X8GF2TVDW0S3",
        "ATATT3xFfGF0abcdefghijklmnopqrstuvwxyz=0123ABCD",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN",
        f"eyJ{'hbGciOi' * 600}.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN",  # with certificates
        "4111 1111 1111 1111",  # Luhn's sum is right
        "5500-0055-5555-5559",
        "378282246310005",
        "bPxRf1CY7EXAMPLEKEYwJal9rXUtnFEMI",
    ],
)
def test_a_secret_is_known_by_its_form(secret: str) -> None:
    text = f"Here it is: {secret}, keep it."
    assert withhold(text) == f"Here it is: {WITHHELD}, keep it."


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("My password is hunter2.", "My password is [withheld]."),
        ("The wifi password hunter2, please", "The wifi password [withheld], please"),
        ("My password md5x9k2qz works", "My password [withheld] works"),
        ("The wifi password gpio1234 works", "The wifi password [withheld] works"),
        ("Passwort 'Geheim1!'", "Passwort '[withheld]!'"),
        ("password: correct-horse", "password: [withheld]"),
        ("Mein Passwort lautet Geheim1!", "Mein Passwort lautet [withheld]!"),
        ("La mia password è gatto123.", "La mia password è [withheld]."),
        ("Minha senha é gato123", "Minha senha é [withheld]"),
        ("Het wachtwoord is kat123", "Het wachtwoord is [withheld]"),
        ("Mitt lösenord är katt123", "Mitt lösenord är [withheld]"),
        ("Moje hasło: kot123", "Moje hasło: [withheld]"),
        ("Пароль: кот123", "Пароль: [withheld]"),
        ("パスワードはneko123です。", "パスワードは[withheld]です。"),
        ("我的密码是 mao123", "我的密码是 [withheld]"),
        ("비밀번호는 goyangi1", "비밀번호는 [withheld]"),
        ("The PIN for my card is 4921", "The PIN for my card is [withheld]"),
        ("Card 4111 1111 1111 1111 12/27", "Card [withheld] 12/27"),
        ("Amex 3782 822463 10005 1127", "Amex [withheld] 1127"),
        ("Card 2 5500005555555559 123 and 4111-1111-1111-1111", "Card 2 [withheld] 123 and [withheld]"),
        ("Card 4111 1111 1111 1111 4.50", "Card [withheld] 4.50"),
        (
            "It is postgres://anna:hunter2@db.example.org/x",
            "It is postgres://anna:[withheld]@db.example.org/x",
        ),
        ("redis://:swordfish@cache:6379", "redis://:[withheld]@cache:6379"),
        ("DB_PASSWORD=swordfish", "DB_PASSWORD=[withheld]"),
        ("export GITHUB_TOKEN='0123456789abcdef'", "export GITHUB_TOKEN='[withheld]'"),
        ("JWT_SECRET=a1b2c3d4, PORT=8080", "JWT_SECRET=[withheld], PORT=8080"),
        ("api key: abc123def", "api key: [withheld]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- ok", "[withheld] ok"),
    ],
)
def test_the_words_around_a_secret_reveal_it(text: str, left: str) -> None:
    assert withhold(text) == left
    assert has_secret(text)


@pytest.mark.parametrize(
    "text",
    [
        "My password is wrong.",
        "I forgot my password again.",
        "My password manager is hosted.",
        "We store each password sha256-hashed, and the access token oauth2.0 gives.",
        "We store the password md5-hashed, and the sensor is on pin GPIO17.",
        "I compare pplx-embed-context-v1-0.6b with pplx-70b-online.",
        "I reset the password for my windows11 laptop in 2024.",
        "我忘了密码。",
        "请看密码 API 的文档",
        "パスワードを忘れました。",
        "My cat is called Miso, born 2019-04-01.",
        "Call me at +47 22 33 44 55.",
        "Order 4111 1111 1111 1112 was late.",  # not a card: the sum is wrong
        "0000 0000 0000 0000",
        "It is in /home/user/Projects2024/Some/Long/Path.",
        "Open http://localhost:8080/@anna or https://example.com:443 and write to a:b@example.com.",
        "See https://example.com/Articles/2024/How-To-Grow-Tomatoes",
        "commit eda0f1c2b3a4958677869504132231404f5e6d7c",
        "The secret of good bread is time.",
        "MAX_TOKENS=4096, SORT_KEY=created_at and the new dapi of 2024.",
        "pi is 3.14159265358979323846",
        "He paid 4111111111111111.50 and 3,4111 1111 1111.",
        "We wrote e2b_sandbox_configuration_for_tests and ntn_something_else_entirely_long.",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    assert withhold(text) == text
    assert not has_secret(text)


def test_many_names_of_secrets_in_a_row_take_linear_time() -> None:
    text = "AKEY=" * 100_000
    assert withhold(text) == text
