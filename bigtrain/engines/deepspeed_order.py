"""Gradients reach DeepSpeed's buckets in one order on every rank."""

from __future__ import annotations

from typing import Any


def in_one_order(optimizer: Any) -> None:
    """Hand gradients over in an order that all ranks share, whatever the order in which autograd finishes them.

    ZeRO-1 and ZeRO-2 lay gradients into a bucket as they arrive, and reduce the bucket as it lies there. But the order
    of arrival may depend on the batch (seen: an LSTM over packed sequences, where the samples of one rank are of equal
    length and those of another are not), and then the gradient of one weight is added to that of another, without a
    word. So a gradient waits here for those that come before it: from the last parameter to the first, as autograd
    mostly goes. What has not come by the end of the backward pass has none there.
    """
    if not hasattr(optimizer, "ipg_buckets"):  # ZeRO-1 in bf16: every gradient has a place of its own
        return
    members = [parameter for group in optimizer.bit16_groups for parameter in group]
    place = {id(parameter): at for at, parameter in enumerate(reversed(members))}
    hand_over = optimizer.reduce_ready_partitions_and_remove_grads
    finish = optimizer.independent_gradient_partition_epilogue
    waiting: dict[int, tuple[Any, int]] = {}
    due = 0

    def arrived(parameter: Any, group: int) -> None:
        nonlocal due
        waiting[place[id(parameter)]] = (parameter, group)
        while due in waiting:
            hand_over(*waiting.pop(due))
            due += 1

    def ended() -> None:
        nonlocal due
        for at in sorted(waiting):
            hand_over(*waiting.pop(at))
        due = 0
        finish()

    optimizer.reduce_ready_partitions_and_remove_grads = arrived
    optimizer.independent_gradient_partition_epilogue = ended
