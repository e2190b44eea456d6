"""Where is the user's Kaggle token, and what is none?"""

import base64

import pytest

from input_pipeline import kaggle_token
from input_pipeline.cli import UserError

TOKEN = "KGAT-secret-0123456789abcdef"


def test_tokens(tmp_path):
    basic = "Basic " + base64.b64encode(b"me:key1").decode()
    (tmp_path / "kaggle.json").write_text('{"username": "me", "key": "key1"}\n')
    folder = {"KAGGLE_CONFIG_DIR": str(tmp_path)}
    assert kaggle_token.authorization(None, folder) == basic
    (tmp_path / "access_token").write_text(TOKEN + "\n")
    assert kaggle_token.authorization(None, folder) == f"Bearer {TOKEN}"
    pair = folder | {"KAGGLE_USERNAME": "me", "KAGGLE_KEY": "key1"}
    assert kaggle_token.authorization(None, pair) == basic
    assert kaggle_token.authorization(None, pair | {"KAGGLE_API_TOKEN": "t"}) == "Bearer t"
    assert kaggle_token.authorization(tmp_path / "kaggle.json", pair) == basic
    assert kaggle_token.authorization(None, {"HOME": str(tmp_path)}) == ""


@pytest.mark.parametrize("content", [b"", b"{", b'{"username": "me"}', b"two words", b"a\x00b", b"\xff", b"x" * 5000])
def test_files_without_a_token(tmp_path, content):
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(UserError, match="https://www.kaggle.com/settings") as error:
        kaggle_token.authorization(tmp_path / "token")
    assert "two words" not in str(error.value)
