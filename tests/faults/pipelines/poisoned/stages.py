"""As the battery's pipeline, with one part that kills, breaks or outgrows its worker."""

from tests import poisons
from tests.faults.effects import effect


def split(bench, given):
    effect(bench)
    for n in range(bench.params["parts"]):
        bench.emit(n, {"n": n})
    return {"parts": bench.params["parts"]}


def grind(bench, given):
    effect(bench)
    if given["n"] == bench.params["bad"]:
        return getattr(poisons, bench.params["how"])(bench)
    return {"square": given["n"] ** 2}


def gather(bench, given):
    effect(bench)
    total = sum(one["square"] for one in given)
    bench.keep("sum.txt", f"{bench.params['name']} {total}")
    return {"name": bench.params["name"], "sum": total}
