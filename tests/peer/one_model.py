"""A model and a peer in a process: `python -m tests.peer.one_model NAME CONFIG`.

Prefills the prompt of the tests, puts its cache into the store that it shares, and says where to
join it and what the logits after the prompt were. Ends when its standard input does.
"""

import json
import sys
from pathlib import Path

from kvbench.integrations.transformers import PrefixCache, keeping_past
from kvbench.peer import connect
from kvbench.store.block import Status
from tests.integrations.models import LONG, WAIT_S, namespace_of, new_cache, prompt, run, shape_of


def main() -> None:
    name, config = sys.argv[1], Path(sys.argv[2])
    shape, ids = shape_of(name), prompt(LONG)
    with connect(config) as service:
        prefix = PrefixCache(service.store, shape, namespace_of(shape))
        cache = new_cache(name)
        with keeping_past(cache):
            logits = run(name, ids, cache)
            saved = prefix.save(cache, ids)
        statuses = saved.request.result(WAIT_S)
        said = {
            "join": service.join[0],
            "saved": statuses.count(Status.OK),
            "logits": logits.float().numpy().tobytes().hex(),
        }
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
