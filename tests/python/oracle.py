"""Naive merges in NumPy, float64, to compare the program with. One function a method, tensor by tensor, no cleverness.

Arithmetic: task vectors are float32 differences; everything after is float64, models in the config's order, × λ, any
division last. Values go in and come out as arrays of one tensor; theta is the list of models.
"""

import numpy as np


def task_vector(theta, base):
    return (theta.astype(np.float64) - base.astype(np.float64)).astype(np.float32)


# ---- linear, slerp, passthrough ----------------------------------------------------------------------------------------


def linear(theta, weights, normalize=True):
    total = np.zeros(theta[0].shape)
    for x, w in zip(theta, weights):
        total = total + w * x.astype(np.float64)
    return total / sum(weights) if normalize else total


def slerp(a, b, t):
    a, b = a.astype(np.float64), b.astype(np.float64)
    length_a, length_b = np.sqrt((a * a).sum()), np.sqrt((b * b).sum())
    cosine = (a * b).sum() / ((length_a if length_a > 1e-8 else 1) * (length_b if length_b > 1e-8 else 1))
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    return np.sin((1 - t) * angle) / np.sin(angle) * a + np.sin(t * angle) / np.sin(angle) * b


def nearswap(a, b, t):
    a, b = a.astype(np.float64), b.astype(np.float64)
    w = np.minimum(t / np.maximum(np.abs(b - a), 1e-6), 1)
    return w * b + (1 - w) * a


def nuslerp(a, b, weights):
    a, b = a.astype(np.float64), b.astype(np.float64)
    t = weights[1] / sum(weights) if abs(sum(weights)) >= 1e-6 else 0.5
    cosine = np.clip((a / max(np.linalg.norm(a), 1e-7) * (b / max(np.linalg.norm(b), 1e-7))).sum(), -1, 1)
    if 1 - cosine**2 <= 1e-16:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def by_rows(function, *arrays):
    """A function of arrays of one shape, on each row along their last dimension."""
    rows = zip(*(x.reshape(-1, *x.shape[-1:] or (1,)) for x in arrays))
    return np.stack([function(*r) for r in rows]).reshape(arrays[0].shape)


def multislerp(theta, weights, normalize=True, eps=1e-8):
    """With the step in the tangent space that mergekit takes: it is 0 but for rounding."""
    x = [v.astype(np.float64) for v in theta]
    w = [v / sum(weights) if normalize else v for v in weights]
    norms = [np.linalg.norm(v) for v in x]
    units = [v / (n + eps) if n > 0 else v for v, n in zip(x, norms)]
    mean = sum(a * u for a, u in zip(w, units))
    if np.linalg.norm(mean) <= eps:
        return sum(a * v for a, v in zip(w, x))
    mean = mean / np.linalg.norm(mean)
    tangent = sum(a * (u - (u * mean).sum() * mean) for a, u in zip(w, units))
    way = np.linalg.norm(tangent) + eps
    return (np.cos(way) * mean + np.sinc(way / np.pi) * tangent) * sum(a * n for a, n in zip(w, norms))


def karcher(theta, steps=10, tol=1e-5):
    x = [v.astype(np.float64) for v in theta]
    norms = [np.linalg.norm(v) for v in x]
    units = [v / n for v, n in zip(x, norms) if n > tol]
    if not units:
        return np.zeros(x[0].shape)
    mean = sum(units) / len(units)
    mean = units[0] if np.linalg.norm(mean) <= tol else mean / np.linalg.norm(mean)
    for _ in range(steps):
        tangent = np.zeros(mean.shape)
        for u in units:
            cosine = np.clip((u * mean).sum(), -1, 1)
            angle = np.arccos(cosine)
            if tol < angle <= np.pi - 1e-6:
                tangent = tangent + angle / np.sin(angle) * (u - cosine * mean) / len(units)
        way = np.linalg.norm(tangent)
        if way <= tol:
            break
        mean = np.cos(way) * mean + np.sin(way) * tangent / way
        mean = mean / np.linalg.norm(mean)
    return sum(norms) / len(norms) * mean


def model_stock(base, theta):
    tau = [task_vector(x, base).astype(np.float64) for x in theta]
    pairs = [(a, b) for i, a in enumerate(tau) for b in tau[:i]]
    cosine = np.mean([np.clip((a * b).sum() / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-6), -1, 1) for a, b in pairs])
    divisor = 1 + (len(tau) - 1) * cosine
    t = len(tau) * cosine / divisor if abs(divisor) >= 1e-6 else 0
    return base.astype(np.float64) + t * sum(tau) / len(tau)


def consensus_of_tasks(base, theta, lam=1.0, mask_lambdas=None, agree=2):
    tau = [task_vector(x, base).astype(np.float64) for x in theta]
    total = sum(tau)
    masks = [np.abs(t) > m * np.abs(total - t) for t, m in zip(tau, mask_lambdas or [0.4] * len(tau))]
    return base.astype(np.float64) + np.where(sum(m.astype(int) for m in masks) >= agree, lam * total, 0)


# ---- the task-arithmetic family ----------------------------------------------------------------------------------------


def combine(base, delta, weights, lam, normalize):
    total = np.zeros(base.shape)
    for d, w in zip(delta, weights):
        total = total + w * d.astype(np.float64)
    divisor = sum(weights) if normalize and abs(sum(weights)) >= 1e-8 else 1
    return base.astype(np.float64) + lam * total / divisor


def consensus(base, delta, weights, lam, normalize):
    """The elected sign is + where Σ w δ ≥ 0; entries of that sign stay, zeros never do."""
    weighted = [w * d.astype(np.float64) for d, w in zip(delta, weights)]
    sign = np.where(sum(weighted) >= 0, 1.0, -1.0)
    total, divisor = np.zeros(base.shape), np.zeros(base.shape)
    for x, w in zip(weighted, weights):
        stays = np.sign(x) == sign
        total = total + np.where(stays, x, 0)
        divisor = divisor + np.where(stays, w, 0)
    if not normalize:
        return base.astype(np.float64) + lam * total
    return base.astype(np.float64) + lam * total / np.where(divisor == 0, 1, divisor)


def task_arithmetic(base, theta, weights, lam=1.0, normalize=False):
    return combine(base, [task_vector(x, base) for x in theta], weights, lam, normalize)


def largest(magnitude, count):
    """Mask of the `count` largest of a flat array; of equals the earlier."""
    mask = np.zeros(magnitude.size, bool)
    mask[np.argsort(-magnitude, kind="stable")[:count]] = True
    return mask


def ties_masks(base, theta, densities, scope):
    """base, theta: dicts of all tensors. {name: [mask of each model]}."""
    names = sorted(base, key=lambda name: name.encode())
    masks = {name: [] for name in names}
    for model, density in zip(theta, densities):
        flat = {name: np.abs(task_vector(model[name], base[name]).reshape(-1)) for name in names}
        if scope == "model":
            whole = np.concatenate([flat[name] for name in names])
            mask = largest(whole, max(1, int(np.floor(density * whole.size))))
            parts = np.split(mask, np.cumsum([flat[name].size for name in names])[:-1])
        else:
            parts = [largest(flat[name], max(1, int(np.floor(density * flat[name].size)))) for name in names]
        for name, part in zip(names, parts):
            masks[name].append(part.reshape(base[name].shape))
    return masks


def ties(base, theta, masks, weights, lam=1.0, normalize=True):
    delta = [np.where(m, task_vector(x, base), np.float32(0)) for x, m in zip(theta, masks)]
    return consensus(base, delta, weights, lam, normalize)


def breadcrumbs_mask(magnitude, density, gamma):
    """Of a flat array. Ascending, positions bottom … bottom + kept − 1 stay; of equals the earlier counts as the larger."""
    n = magnitude.size
    if density >= 1:
        return np.ones(n, bool)
    kept, top = int(density * n), int(gamma * n)
    bottom = max(0, n - kept - top)
    mask = np.zeros(n, bool)
    mask[np.argsort(-magnitude, kind="stable")[::-1][bottom : bottom + kept]] = True
    return mask


def breadcrumbs(base, theta, weights, densities, gammas, elect=False, lam=1.0, normalize=False):
    delta = []
    for x, density, gamma in zip(theta, densities, gammas):
        tau = task_vector(x, base)
        mask = breadcrumbs_mask(np.abs(tau).reshape(-1), density, gamma).reshape(tau.shape)
        delta.append(np.where(mask, tau, np.float32(0)))
    return (consensus if elect else combine)(base, delta, weights, lam, normalize)


# ---- sce, ram ----------------------------------------------------------------------------------------------------------


def sce_variance(tau):
    """Over the models, [models][…]: float64, rounded once."""
    return tau.astype(np.float64).var(axis=0).astype(np.float32)


def sce_mask(tau, topk):
    if topk >= 1:
        return np.ones(tau.shape[1:], bool)
    variance = sce_variance(tau)
    return largest(variance.reshape(-1), int(topk * np.count_nonzero(variance))).reshape(variance.shape)


def sce(base, theta, topk=1.0, mask=None):
    tau = np.stack([task_vector(x, base) for x in theta])
    tau = np.where(sce_mask(tau, topk) if mask is None else mask, tau, np.float32(0)).astype(np.float64)
    weights = np.array([(t * t).sum() / t.size for t in tau])
    weights = weights / weights.sum() if weights.sum() >= 1e-6 else np.full(len(tau), 1 / len(tau))
    sign = np.where(tau.sum(0) >= 0, 1.0, -1.0)
    total, divisor = np.zeros(base.shape), np.zeros(base.shape)
    for t, w in zip(tau, weights):
        total = total + np.where(np.sign(t) == sign, w * t, 0)
        divisor = divisor + np.where(np.sign(t) == sign, w, 0)
    return base.astype(np.float64) + total / np.maximum(divisor, 1e-6)


def ram(base, theta, epsilon=1e-5, r=0.0, alpha=0.2):
    """ram with r = 0, else ramplus_tl."""
    tau = np.stack([task_vector(x, base) for x in theta])
    changed = np.abs(tau) > np.float32(epsilon)
    count = changed.sum(0)
    total = np.zeros(base.shape)
    for t, mine in zip(tau.astype(np.float64), changed):
        alone, shared = mine & (count == 1), mine & (count > 1)
        ratio = shared.sum() / alone.sum() if alone.any() else 0
        total = total + np.where(alone, (1 + r * min(ratio, alpha)) * t, 0) + np.where(shared, t, 0)
    return base.astype(np.float64) + total / np.maximum(count, 1)


# ---- nps: subspaces by magnitude ---------------------------------------------------------------------------------------


def nps_pruned(tau, weights, priorities, density):
    """(q, mask) of a flat task vector; subspaces smallest first, equal magnitudes share one."""
    magnitude, count = np.abs(tau), len(weights)
    thresholds = np.sort(magnitude)[[m * tau.size // count for m in range(1, count)]]
    subspace = np.searchsorted(thresholds, magnitude, side="right")
    score = np.asarray(priorities, np.float32)[subspace] * magnitude
    mask = largest(score, int(np.floor(density * tau.size)))
    return np.where(mask, np.asarray(weights, np.float32)[subspace] * tau, np.float32(0)), mask


def nps_models(base, theta, weights, densities, scope, priorities=None):
    """base, theta: dicts of all tensors; weights: M numbers of each model. ({name: [q of each model]}, [kept entries])."""
    names = sorted(base, key=lambda name: name.encode())
    q, kept = {name: [] for name in names}, []
    for i, (model, density) in enumerate(zip(theta, densities)):
        flat = [task_vector(model[name], base[name]).reshape(-1) for name in names]
        keys = np.abs(weights[i]) if priorities is None else priorities[i]
        if scope == "model":
            whole, mask = nps_pruned(np.concatenate(flat), weights[i], keys, density)
            parts = np.split(whole, np.cumsum([x.size for x in flat])[:-1])
            kept.append(int(mask.sum()))
        else:
            pruned = [nps_pruned(x, weights[i], keys, density) for x in flat]
            parts = [part for part, _ in pruned]
            kept.append(sum(int(mask.sum()) for _, mask in pruned))
        for name, part in zip(names, parts):
            q[name].append(part.reshape(base[name].shape))
    return q, kept


def nps(base, q, lambdas, normalize="none"):
    total, present = np.zeros(base.shape), np.zeros(base.shape)
    for x, lam in zip(q, lambdas):
        total = total + lam * x.astype(np.float64)
        present = present + np.where(x != 0, lam, 0.0)
    if normalize == "sum":
        total = total / sum(lambdas)
    elif normalize == "coordinate":
        total = np.divide(total, present, out=np.zeros_like(total), where=present != 0)
    return base.astype(np.float64) + total


# ---- dare: masks from the documented generator -------------------------------------------------------------------------


def philox4x32(counter, key):
    """Philox4x32-10 (Salmon et al., SC 2011) of arrays of counters [n][4] under one key [2], after the paper."""
    c = [np.array(part, np.uint64) for part in np.asarray(counter, np.uint64).reshape(-1, 4).T]
    k = [int(key[0]), int(key[1])]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        product_0, product_1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            (product_1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]),
            product_1 & low,
            (product_0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]),
            product_0 & low,
        ]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(c, 1)


def random_words(key, lane, count):
    """Words 0 … count − 1 of a stream: word i is word i mod 4 of block ⌊i/4⌋."""
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    counter = np.stack(
        [blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32), np.full_like(blocks, lane), np.zeros_like(blocks)], 1
    )
    return philox4x32(counter, (key & 0xFFFFFFFF, key >> 32)).reshape(-1)[:count]


def fnv1a(name):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) % 2**64
    return h


def dare_mask(name, shape, density, seed, model):
    """Entry i stays where word i of stream (seed XOR FNV-1a of the tensor's name, model) is below density × 2^32."""
    if density >= 1:
        return np.ones(shape, bool)
    words = random_words(seed ^ fnv1a(name), model, int(np.prod(shape, dtype=np.int64)))
    return (words < np.uint64(density * 4294967296.0)).reshape(shape)


def l1_factor(tau, kept):
    all_l1, kept_l1 = np.abs(tau, dtype=np.float64).sum(), np.abs(kept, dtype=np.float64).sum()
    return all_l1 / kept_l1 if all_l1 >= 1e-7 and kept_l1 >= 1e-7 else 1.0


def dare(name, base, theta, weights, densities, seed, rescale=True, elect=False, lam=1.0, normalize=False):
    delta = []
    for i, (x, density) in enumerate(zip(theta, densities)):
        tau = task_vector(x, base)
        kept = np.where(dare_mask(name, base.shape, density, seed, i), tau, np.float32(0))
        factor = 1 / density if rescale == "expectation" else l1_factor(tau, kept) if rescale else 1.0
        delta.append(factor * kept.astype(np.float64))
    return (consensus if elect else combine)(base, delta, weights, lam, normalize)


# ---- della -------------------------------------------------------------------------------------------------------------


def della_mask(name, tau, density, epsilon, seed, model):
    """An entry of rank r (from 0, by magnitude, the earlier of equals above) among the n of its row, which is the last
    dimension, stays where its word of dare's stream is below (density - epsilon + 2 epsilon r / (n - 1)) x 2^32."""
    if density >= 1 or density <= 0:
        return np.full(tau.shape, density >= 1)
    rows = np.abs(tau).reshape(-1, tau.shape[-1] if tau.ndim else 1)
    n = rows.shape[1]
    rank = np.empty(rows.shape)
    for row, ranks in zip(rows, rank):
        ranks[np.argsort(-row, kind="stable")] = np.arange(n)[::-1]
    p = density - epsilon + 2 * epsilon * rank / (n - 1) if n > 1 else np.full(rows.shape, density)
    words = random_words(seed ^ fnv1a(name), model, tau.size)
    return (words < p.reshape(-1) * 4294967296.0).reshape(tau.shape)


def della(name, base, theta, weights, densities, epsilons, seed, rescale=True, elect=True, lam=1.0, normalize=True):
    delta = []
    for i, (x, density, epsilon) in enumerate(zip(theta, densities, epsilons)):
        tau = task_vector(x, base)
        kept = np.where(della_mask(name, tau, density, epsilon, seed, i), tau, np.float32(0))
        delta.append((l1_factor(tau, kept) if rescale else 1.0) * kept.astype(np.float64))
    return (consensus if elect else combine)(base, delta, weights, lam, normalize)


# ---- arcee_fusion ------------------------------------------------------------------------------------------------------


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def arcee_fusion(base, theta):
    base, theta = (np.atleast_1d(x).astype(np.float64) for x in (base, theta))
    p, q = softmax(theta) + 1e-8, softmax(base) + 1e-8
    divergence = np.maximum((p * np.log(p / q)).sum(-1, keepdims=True), 0)
    importance = (np.abs(theta - base) * divergence).astype(np.float32)
    ascending = np.sort(importance.reshape(-1)).astype(np.float64)
    first, median, third = (ascending[i * (ascending.size - 1) // 4] for i in (1, 2, 3))
    return np.where(importance >= median + 1.5 * (third - first), theta, base)
