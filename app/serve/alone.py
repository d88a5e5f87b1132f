"""TEMPORARY stand-in for BatchGenerator over caches that cannot be merged: one row at a time."""

from types import SimpleNamespace

import mlx.core as mx


class AloneGenerator:
    def __init__(self, model, prefill_step_size, **_):
        self.model, self.step, self.seqs, self.n = model, prefill_step_size, {}, 0

    def insert_segments(
        self, segments, max_tokens, caches, all_tokens, samplers, logits_processors, stop_sequences
    ):
        self.n += 1
        segs = [s for s in segments[0] if s]
        if len(segs[-1]) != 1:
            segs[-1:] = [segs[-1][:-1], segs[-1][-1:]]
        self.seqs[self.n] = SimpleNamespace(
            segs=segs,
            left=max_tokens[0],
            cache=caches[0],
            tokens=list(all_tokens[0]),
            sampler=samplers[0],
            procs=logits_processors[0],
            m=stop_sequences[0].matcher(),
            done=0,
            total=sum(map(len, segs)),
            next=None,
        )
        return [self.n]

    def next(self):
        if not self.seqs:
            return [], []
        uid, s = next(iter(self.seqs.items()))
        R = SimpleNamespace
        if s.next is None and (len(s.segs) > 1 or len(s.segs[0]) > 1):
            seg = s.segs[0][: self.step]
            s.segs[0] = s.segs[0][self.step :]
            self.model(mx.array([seg]), cache=s.cache)
            mx.eval([c.state for c in s.cache])
            s.tokens += seg
            s.done += len(seg)
            end = not s.segs[0]
            if end:
                s.segs.pop(0)
            return [
                R(uid=uid, progress=(s.done, s.total), end_of_segment=end, end_of_prompt=False)
            ], []
        if s.next is None:
            s.next = (s.segs[0][0], None)
            self._feed(s)
            return [
                R(uid=uid, progress=(s.total, s.total), end_of_segment=True, end_of_prompt=True)
            ], []
        token, logprobs = s.next
        self._feed(s)
        finish = "length" if (left := s.left - 1) <= 0 else None
        s.left = left
        if s.m.advance(token):
            finish = "stop"
        r = R(
            uid=uid,
            token=token,
            logprobs=logprobs,
            finish_reason=finish,
            prompt_cache=None,
            all_tokens=None,
        )
        if finish:
            r.prompt_cache, r.all_tokens = s.cache, s.tokens
            del self.seqs[uid]
        return [], [r]

    def _feed(self, s):
        token = s.next[0]
        s.tokens.append(token)
        logits = self.model(mx.array([[token]]), cache=s.cache)[:, -1, :]
        for p in s.procs:
            logits = p(mx.array(s.tokens), logits)
        lp = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        s.next = (int(s.sampler(lp).item()), lp[0])

    def extract_cache(self, uids):
        import copy

        return {u: (copy.deepcopy(self.seqs[u].cache), list(self.seqs[u].tokens)) for u in uids}

    def remove(self, uids, return_prompt_caches=False):
        out = self.extract_cache(uids) if return_prompt_caches else {}
        for u in uids:
            del self.seqs[u]
        return out

    def close(self):
        pass
