"""One file per study: `get_config(preset)` returns a locked ConfigDict. A study is data, not code."""
