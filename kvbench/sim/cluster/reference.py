"""The simulator once more: slow, obvious, in plain Python objects.

Gives the same outcome as the compiled loop to the last bit, which tests require of small clusters
of every kind; it decodes step by step, searches where the loop has tables, and runs the policies of
`kvbench.policy`. Not for long traces: it does some hundred requests a second.
"""

import math
from functools import partial

from kvbench.sim.cluster.reference_cluster import Cluster, Job, Node
from kvbench.sim.cluster.reference_parts import alone_s
from kvbench.sim.cluster.reference_prefill import HBM, PEER, Found, decide, keep
from kvbench.sim.cluster.reference_routing import route
from kvbench.sim.columns import Columns
from kvbench.sim.scenario import Scenario

TRANSFER, PREFILL, DECODE = range(3)  # at the same time


class Reference:
    """One simulation. After `run`, `cluster` has what tiers and links did."""

    def __init__(self, columns: Columns, scenario: Scenario) -> None:
        self.scenario = scenario
        self.cluster = Cluster(columns, scenario)
        self.agenda = self.cluster.agenda
        self._found: dict[int, Found] = {}  # decided on arrival

    def run(self) -> list[Job]:
        """Until nothing is left to happen."""
        for job in self.cluster.jobs:
            while self.agenda.next_s() <= job.arrival_s:
                self._happen()
            self.agenda.now_s = job.arrival_s
            self.cluster.directory.hear()
            self._arrive(job)
        while math.isfinite(self.agenda.next_s()):
            self._happen()
        return self.cluster.jobs

    def _happen(self) -> None:
        self.agenda.now_s = self.agenda.next_s()
        self.cluster.directory.hear()
        self.agenda.happen()

    # Arrival

    def _arrive(self, job: Job) -> None:
        cluster = self.cluster
        cluster.expire()
        have = [cluster.directory.run(n, job.blocks) for n in range(len(cluster.nodes))]
        node = cluster.nodes[route(cluster, job, have)]
        decoder = node
        if cluster.decoders is not cluster.nodes:
            decoder = min(cluster.decoders, key=lambda n: n.assigned)
        elsewhere = cluster.elsewhere(job, have)
        estimate_s = cluster.estimate(job, node, have[node.number], elsewhere)
        if self.scenario.objective.reject and self._misses(job, node, decoder, estimate_s):
            return
        job.node, job.decoder = node.number, decoder.number
        job.decode_node = cluster.decoders.index(decoder)
        job.estimate_s = estimate_s
        if self.scenario.on_arrival:
            self._found[job.number] = _simple(cluster, node, decide(cluster, job, node))
            keep(cluster, job, node)
        node.outstanding.append(job)
        decoder.assigned += 1
        node.waiting_s += estimate_s
        node.queue.append(job)
        if node.segment is None and node.current is None:
            self._next(node)

    def _misses(self, job: Job, node: Node, decoder: Node, prefill_s: float) -> bool:
        cluster, objective = self.cluster, self.scenario.objective
        ttft_s = cluster.queued_s(node) + prefill_s
        if decoder is not node and job.output > 1:
            size_bytes = job.tokens * self.scenario.kv_bytes_per_token * cluster.tail
            ttft_s += alone_s([node.send, decoder.receive], size_bytes)
        if ttft_s > objective.ttft_s:
            return True
        decode = self.scenario.decode
        context = decoder.segment[1] if decoder.segment else decoder.context
        step_s = cluster.steps_s(len(decoder.batch), context, 1)
        added_s = decode.per_sequence_s + decode.per_context_token_s * job.tokens
        return job.output > 1 and step_s + added_s > objective.tpot_s

    # Prefill

    def _next(self, node: Node) -> None:
        """The node is free: prefill if one waits, else decode."""
        if node.queue:
            self.cluster.expire()
            self._begin(node.queue.popleft(), node)
        else:
            self._decode(node)

    def _begin(self, job: Job, node: Node) -> None:
        cluster, now_s = self.cluster, self.agenda.now_s
        found = self._found.pop(job.number, None) or decide(cluster, job, node)
        node.waiting_s = node.waiting_s - job.estimate_s if node.queue else 0.0
        job.begun_s = now_s
        job.queue_s = now_s - job.arrival_s
        job.compute_s = cluster.prefill_s(job, job.cached)
        moving = [source for source in found.sources() if not source.free]
        longest_s = max([alone_s(s.links, s.bytes) for s in moving], default=0.0)
        node.current = job
        node.current_end_s = now_s + max(job.compute_s, longest_s + job.compute_s * cluster.tail)
        job.loaded_s = job.fetched_s = now_s
        for source in moving:
            job.pending += 1
            source.pool.read_bytes += source.bytes
            own = source.hit < PEER
            cluster.net.send(source.links, source.bytes, partial(self._came, job, node, own))
        if found.vain is not None:
            job.pending += 1
            links = [found.vain.send, node.receive]
            cluster.net.send(links, 0.0, lambda: self._came(job, node, False))
        if cluster.decoders is not cluster.nodes and cluster.tail < 1 and job.output > 1:
            job.legs = 2
            self._hand_off(job, node, 1.0 - cluster.tail)
        if job.pending == 0:
            self._plan_end(node, now_s + job.compute_s)

    def _plan_end(self, node: Node, end_s: float) -> None:
        name = ("prefill", node.number)
        self.agenda.plan(name, end_s, PREFILL, node.number, lambda: self._finish(node))

    def _came(self, job: Job, node: Node, own: bool) -> None:
        now_s = self.agenda.now_s
        if own:
            job.loaded_s = now_s
        else:
            job.fetched_s = now_s
        job.pending -= 1
        if job.pending == 0:
            begun_s = job.arrival_s + job.queue_s
            end_s = max(begun_s + job.compute_s, now_s + job.compute_s * self.cluster.tail)
            self._plan_end(node, end_s)

    def _hand_off(self, job: Job, node: Node, share: float) -> None:
        decoder = self.cluster.decoders[job.decoder - len(self.cluster.nodes)]
        size_bytes = job.tokens * self.scenario.kv_bytes_per_token * share
        links = [node.send, decoder.receive]
        self.cluster.net.send(links, size_bytes, lambda: self._handed(job, decoder))

    def _handed(self, job: Job, decoder: Node) -> None:
        job.legs -= 1
        if job.legs == 0:
            decoder.joining.append(job)
            if decoder.segment is None:
                self._next(decoder)

    def _finish(self, node: Node) -> None:
        cluster, now_s, job = self.cluster, self.agenda.now_s, node.current
        assert job is not None
        begun_s = job.arrival_s + job.queue_s
        hidden_s = job.compute_s * (1.0 - cluster.tail)
        exposed_s = max(0.0, now_s - begun_s - job.compute_s)
        job.load_s = min(exposed_s, max(0.0, job.loaded_s - begun_s - hidden_s))
        job.transfer_s = exposed_s - job.load_s
        job.hand_off_s = 0.0
        job.ttft_s = now_s - job.arrival_s
        node.prefill_busy_s += now_s - begun_s
        node.current = None
        if not self.scenario.on_arrival:
            keep(cluster, job, node)
        apart = cluster.decoders is not cluster.nodes
        if apart:
            node.outstanding.remove(job)
        if job.output <= 1:
            first = len(cluster.nodes) if apart else 0
            cluster.decoders[job.decoder - first].assigned -= 1
            self._done(job, node)
        elif apart:
            self._hand_off(job, node, cluster.tail)
        else:
            node.joining.append(job)
        self._next(node)

    def _done(self, job: Job, node: Node) -> None:
        job.finish_s = self.agenda.now_s
        if job.output > 1:
            job.tpot_s = (job.finish_s - job.arrival_s - job.ttft_s) / (job.output - 1)
        if self.cluster.decoders is self.cluster.nodes:
            node.outstanding.remove(job)

    # Decode, one step after the other

    def _fits(self, job: Job, node: Node) -> bool:
        decode = self.scenario.decode
        if len(node.batch) >= decode.most_sequences:
            return False
        reserved = sum(j.tokens + j.output for j in node.batch)
        return (
            decode.most_context_tokens == 0
            or not node.batch
            or reserved + job.tokens + job.output <= decode.most_context_tokens
        )

    def _decode(self, node: Node) -> None:
        while node.joining and self._fits(node.joining[0], node):
            job = node.joining.popleft()
            job.last_step = node.steps + job.output - 1
            node.batch.append(job)
            if self.cluster.decoders is not self.cluster.nodes:
                ended_s = job.arrival_s + job.ttft_s
                job.hand_off_s = self.agenda.now_s - ended_s
                job.ttft_s = self.agenda.now_s - job.arrival_s
        if node.batch:
            node.segment = (self.agenda.now_s, node.context, 0)
            self._plan_step(node)

    def _plan_step(self, node: Node) -> None:
        assert node.segment is not None
        start_s, context, steps = node.segment
        end_s = start_s + self.cluster.steps_s(len(node.batch), context, steps + 1)
        name = ("decode", node.number)
        self.agenda.plan(name, end_s, DECODE, node.number, lambda: self._step(node))

    def _step(self, node: Node) -> None:
        assert node.segment is not None
        start_s, context, steps = node.segment
        node.segment = (start_s, context, steps + 1)
        node.steps += 1
        done = [job for job in node.batch if job.last_step == node.steps]
        joins = bool(node.joining) and self._fits(node.joining[0], node)
        if not done and not joins and not node.queue:
            self._plan_step(node)
            return
        node.decode_busy_s += self.agenda.now_s - start_s
        node.segment = None
        for job in done:
            node.batch.remove(job)
            node.assigned -= 1
            self._done(job, node)
        self._next(node)


def _simple(cluster: Cluster, node: Node, found: Found) -> Found:
    """What was decided on arrival, with all that peers have from the HBM of the first."""
    total = sum(source.blocks for source in found.peers.values())
    if found.asked and total:
        peer = found.asked[0]
        other = cluster.nodes[peer]
        source = next(iter(found.peers.values()))
        source.pool, source.links = other.pools[HBM], [other.send, node.receive]
        source.block_bytes = cluster.scenario.kv_bytes_per_token * cluster.scenario.block_tokens
        source.blocks = total
        found.peers, found.asked = {(peer, HBM): source}, [peer]
    for tier, source in found.later.items():
        found.near.setdefault(tier, source)
        if found.near[tier] is not source:
            found.near[tier].blocks += source.blocks
    found.later, found.vain = {}, None
    return found
