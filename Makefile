.PHONY: all quick test lint docs reference typing format demo bench

# Linters and every test: sets up a real nsys, Chromium and a real vLLM first.
all:
	scripts/test.sh

# A shorter loop: no tools of the system, no Dask, no real captures, no slow tests, fewer random examples.
quick:
	scripts/setup_env.sh test
	env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m pytest -n 2 --dist loadgroup --hypothesis-profile quick \
		-m "not nsys and not vllm and not browser and not prometheus and not dask and not golden and not slow"

# All tests that need no tools of the system.
test:
	scripts/test.sh -m "not nsys and not vllm and not browser and not prometheus"

lint:
	scripts/lint.sh

# The documentation as a site, in site/index.html. Its search needs a server: python3 -m http.server -d site
docs:
	scripts/docs.sh

# The generated parts of docs/reference, from the code.
reference:
	scripts/setup_env.sh test
	.venv/bin/python scripts/write_reference.py

typing:
	scripts/setup_env.sh test
	.venv/bin/mypy

format:
	scripts/setup_env.sh test
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

demo:
	scripts/quickstart.sh

bench:
	scripts/setup_env.sh test
	.venv/bin/python scripts/bench/analyze_speed.py
