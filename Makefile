.PHONY: demo test lint format bench

demo:
	scripts/quickstart.sh

test:
	scripts/test.sh

lint:
	scripts/setup_env.sh test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format:
	scripts/setup_env.sh test
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench:
	scripts/setup_env.sh test
	.venv/bin/python scripts/bench/analyze_speed.py
