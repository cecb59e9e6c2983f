"""Every python block of the README and the pages runs, the blocks of a page in one namespace."""

import pytest

from tests.docs.pages import PAGES, name, python_blocks

WITH_CODE = [path for path in PAGES if python_blocks(path)]


def test_the_pages_that_promise_code_have_some():
    assert {"README.md", "docs/start.md", "docs/how-keras.md", "docs/how-ddp.md"} <= set(map(name, WITH_CODE))


@pytest.mark.parametrize("path", WITH_CODE, ids=name)
@pytest.mark.filterwarnings("ignore::UserWarning:keras.*")
def test_the_blocks_of_a_page_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__page__"}
    for block in python_blocks(path):
        exec(compile(block, str(path), "exec"), namespace)
