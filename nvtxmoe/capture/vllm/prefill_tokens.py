"""Which tokens of a step are prefill: told from the scheduler's output alone."""

from __future__ import annotations

from itertools import repeat
from operator import lt
from typing import Any


class RequestLengths:
    """Prompt lengths of running requests."""

    def __init__(self) -> None:
        self._prompt: dict[str, int] = {}

    def prefill_tokens(self, scheduled: Any) -> int:
        """Tokens of a SchedulerOutput at positions inside their prompts; the others are decode tokens."""
        news = scheduled.scheduled_new_reqs
        if news:
            self.learn(scheduled)
        cached = scheduled.scheduled_cached_reqs
        if not news and len(cached.req_ids) == len(scheduled.num_scheduled_tokens):
            prompts = map(self._prompt.get, cached.req_ids, repeat(0))
            if not any(map(lt, cached.num_computed_tokens, prompts)):
                return 0  # all requests decode, as in most steps
        computed = {new.req_id: new.num_computed_tokens for new in news}
        computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        prefill = 0
        for request, tokens in scheduled.num_scheduled_tokens.items():
            left = self._prompt.get(request, 0) - computed.get(request, 0)
            prefill += max(0, min(tokens, left))
        return prefill

    def learn(self, scheduled: Any) -> None:
        """Keep the prompt lengths of new requests."""
        for new in scheduled.scheduled_new_reqs:
            self._prompt[new.req_id] = _prompt_length(new)

    def forget(self, finished: Any) -> None:
        """Requests that have ended."""
        for request in finished:
            self._prompt.pop(request, None)


def _prompt_length(new: Any) -> int:
    if new.prompt_token_ids is not None:
        return len(new.prompt_token_ids)
    return 0 if new.prompt_embeds is None else int(new.prompt_embeds.shape[0])
