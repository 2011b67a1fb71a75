"""Kernels of the recurrent cell: everything between the products of a step."""

import triton
import triton.language as tl

# Columns of an edge's row in a table: the state it reads; and of its product, in widths of one: those of all states
# before its own in a window's products, those of its own state, and where it begins among these.
SOURCE, BEFORE, COLUMNS, COLUMN = (tl.constexpr(i) for i in range(4))
EDGE = tl.constexpr(4)
TANH, RELU, SIGMOID, IDENTITY = (tl.constexpr(i) for i in range(4))
ACTIVATIONS = tl.constexpr(4)


@triton.jit
def sigmoid_and_tanh(h):
    """Both from one exponential, that of a number which is not above 0."""
    e = tl.exp(-tl.abs(h))
    share = 1 / (1 + e)
    tanh = (1 - e * e) / (1 + e * e)
    return tl.where(h >= 0, share, e * share), tl.where(h >= 0, tanh, -tanh)


@triton.jit
def sigmoid(c):
    e = tl.exp(-tl.abs(c))
    share = 1 / (1 + e)
    return tl.where(c >= 0, share, e * share)


@triton.jit
def relu(h):
    return tl.where(h < 0, 0.0, h)  # not a number stays so


@triton.jit
def edge_product(table_ptr, edge, step, steps, rows, WIDTH: tl.constexpr):
    """First element and pitch of an edge's product at a step."""
    row = table_ptr + edge * EDGE
    columns = tl.load(row + COLUMNS)
    window = steps.to(tl.int64) * rows * tl.load(row + BEFORE)
    at = (window + step.to(tl.int64) * rows * columns + tl.load(row + COLUMN)) * WIDTH
    return at, columns * WIDTH


@triton.jit
def edge_weights(weights_ptr, edge):
    """The weights of an edge's activations: tanh, relu, sigmoid, identity."""
    at = weights_ptr + edge * ACTIVATIONS
    return tl.load(at + TANH), tl.load(at + RELU), tl.load(at + SIGMOID), tl.load(at + IDENTITY)


@triton.jit(do_not_specialize=["added_ptr", "edges", "step", "steps", "rows"])
def cell_forward_kernel(
    states_ptr, products_ptr, table_ptr, weights_ptr, added_ptr, mask_ptr, state_ptr, masked_ptr, stats_ptr,
    edges, step, steps, rows,
    WIDTH: tl.constexpr, NORM: tl.constexpr, RUNNING: tl.constexpr, MASKED: tl.constexpr, EPS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program makes BLOCK_D features of a state: of all rows where these are normalised, else of BLOCK_R.

    states: [states, rows, WIDTH] of this step. state, masked: [rows, WIDTH]. stats: [2, WIDTH], read if RUNNING.
    """
    c = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = tl.program_id(1) * BLOCK_R
    end = rows if NORM else tl.minimum(begin + BLOCK_R, rows)
    exists = c < WIDTH
    added = tl.load(added_ptr)
    sums = tl.zeros((BLOCK_D,), ACC)
    for first in range(begin, end, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        mask = (r < end)[:, None] & exists[None, :]
        value = tl.zeros((BLOCK_R, BLOCK_D), ACC) + added
        for edge in range(edges):
            source = tl.load(table_ptr + edge * EDGE + SOURCE)
            at, pitch = edge_product(table_ptr, edge, step, steps, rows, WIDTH)
            w_tanh, w_relu, w_sigmoid, w_identity = edge_weights(weights_ptr, edge)
            product = products_ptr + at + r.to(tl.int64)[:, None] * pitch + c[None, :]
            offset = source.to(tl.int64) * rows * WIDTH + r[:, None] * WIDTH + c[None, :]
            s = tl.load(states_ptr + offset, mask=mask, other=0.0).to(ACC)
            gate = sigmoid(tl.load(product, mask=mask, other=0.0).to(ACC))
            h = tl.load(product + WIDTH, mask=mask, other=0.0).to(ACC)
            of_sigmoid, of_tanh = sigmoid_and_tanh(h)
            f = w_tanh * of_tanh + w_relu * relu(h) + w_sigmoid * of_sigmoid + w_identity * h
            kept = (w_tanh + w_relu + w_sigmoid + w_identity) * s
            value += kept + gate * (f - kept)
        value = tl.where(mask, value, 0.0)
        sums += tl.sum(value, 0)
        place = r.to(tl.int64)[:, None] * WIDTH + c[None, :]
        tl.store(state_ptr + place, value, mask=mask)
        if not NORM:
            if MASKED:
                value *= tl.load(mask_ptr + place, mask=mask, other=0.0)
            tl.store(masked_ptr + place, value.to(masked_ptr.dtype.element_ty), mask=mask)
    if NORM:
        if RUNNING:
            mean = tl.load(stats_ptr + c, mask=exists, other=0.0)
            variance = tl.load(stats_ptr + WIDTH + c, mask=exists, other=0.0)
        else:
            mean = sums / rows
            tl.debug_barrier()
            squares = tl.zeros((BLOCK_D,), ACC)
            for first in range(0, rows, BLOCK_R):
                r = first + tl.arange(0, BLOCK_R)
                mask = (r < rows)[:, None] & exists[None, :]
                place = r.to(tl.int64)[:, None] * WIDTH + c[None, :]
                away = tl.where(mask, tl.load(state_ptr + place, mask=mask, other=0.0) - mean[None, :], 0.0)
                squares += tl.sum(away * away, 0)
            variance = squares / rows
            tl.store(stats_ptr + c, mean, mask=exists)
            tl.store(stats_ptr + WIDTH + c, variance, mask=exists)
        scale = 1 / tl.sqrt(variance + EPS)
        tl.debug_barrier()
        for first in range(0, rows, BLOCK_R):
            r = first + tl.arange(0, BLOCK_R)
            mask = (r < rows)[:, None] & exists[None, :]
            place = r.to(tl.int64)[:, None] * WIDTH + c[None, :]
            value = (tl.load(state_ptr + place, mask=mask, other=0.0) - mean[None, :]) * scale[None, :]
            tl.store(state_ptr + place, value, mask=mask)
            if MASKED:
                value *= tl.load(mask_ptr + place, mask=mask, other=0.0)
            tl.store(masked_ptr + place, value.to(masked_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["outputs", "numel"])
def cell_average_kernel(
    states_ptr, outputs_ptr, mask_ptr, out_ptr, masked_ptr, outputs, numel,
    MASKED: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program makes BLOCK elements of the new hidden state, the mean of the output states, and of it masked."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < numel
    value = tl.zeros((BLOCK,), ACC)
    for output in range(outputs):
        state = tl.load(outputs_ptr + output).to(tl.int64)
        value += tl.load(states_ptr + state * numel + i, mask=mask, other=0.0)
    value = value / outputs
    tl.store(out_ptr + i, value, mask=mask)
    if MASKED:
        value *= tl.load(mask_ptr + i, mask=mask, other=0.0)
    tl.store(masked_ptr + i, value.to(masked_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["states", "numel"])
def cell_spread_kernel(
    from_out_ptr, carried_ptr, product_ptr, mask_ptr, scales_ptr, grads_ptr, states, numel,
    MASKED: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program begins the gradients of all states, BLOCK elements of each, and takes what the next step carried.

    grads[state] = (from_out + carried + product * mask) * scales[state]; carried becomes 0.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < numel
    product = tl.load(product_ptr + i, mask=mask, other=0.0).to(ACC)
    if MASKED:
        product *= tl.load(mask_ptr + i, mask=mask, other=0.0)
    value = tl.load(from_out_ptr + i, mask=mask, other=0.0) + tl.load(carried_ptr + i, mask=mask, other=0.0) + product
    tl.store(carried_ptr + i, tl.zeros((BLOCK,), ACC), mask=mask)
    for state in range(states):
        place = state * numel.to(tl.int64) + i
        tl.store(grads_ptr + place, value * tl.load(scales_ptr + state), mask=mask)


@triton.jit(do_not_specialize=["added_sums_ptr", "edges", "step", "steps", "slot", "slots", "rows", "total"])
def cell_backward_kernel(
    grad_ptr, grad_masked_ptr, mask_ptr, state_ptr, stats_ptr, states_ptr, products_ptr, table_ptr, weights_ptr,
    grad_states_ptr, grad_products_ptr, sums_ptr, added_sums_ptr, edges, step, steps, slot, slots, rows, total,
    WIDTH: tl.constexpr, READ: tl.constexpr, MASKED: tl.constexpr, NORM: tl.constexpr, TRAINING: tl.constexpr,
    EPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program takes BLOCK_D features of a state's gradient through its norm and its edges; rows as in the forward.

    grad: [rows, WIDTH], becomes the gradient before the norm. grad_states: [states, rows, WIDTH], added to. Products
    and their gradients may be one tensor. sums: [programs, total], added to: ACTIVATIONS for each edge; added_sums: 1.
    """
    c = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = tl.program_id(1) * BLOCK_R
    end = rows if NORM else tl.minimum(begin + BLOCK_R, rows)
    exists = c < WIDTH
    own = (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * total
    sum_g, sum_gs = tl.zeros((BLOCK_D,), ACC), tl.zeros((BLOCK_D,), ACC)
    for first in range(begin, end, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        mask = (r < end)[:, None] & exists[None, :]
        place = r.to(tl.int64)[:, None] * WIDTH + c[None, :]
        g = tl.load(grad_ptr + place, mask=mask, other=0.0)
        if READ:
            product = tl.load(grad_masked_ptr + place, mask=mask, other=0.0).to(ACC)
            if MASKED:
                product *= tl.load(mask_ptr + place, mask=mask, other=0.0)
            g += product
            tl.store(grad_ptr + place, g, mask=mask)
        sum_g += tl.sum(g, 0)
        sum_gs += tl.sum(g * tl.load(state_ptr + place, mask=mask, other=0.0), 0)
    tl.debug_barrier()
    if NORM:
        scale = 1 / tl.sqrt(tl.load(stats_ptr + WIDTH + c, mask=exists, other=1.0) + EPS)
        mean_g, mean_gs = sum_g / rows, sum_gs / rows
        sum_g = tl.zeros((BLOCK_D,), ACC)
        for first in range(0, rows, BLOCK_R):
            r = first + tl.arange(0, BLOCK_R)
            mask = (r < rows)[:, None] & exists[None, :]
            place = r.to(tl.int64)[:, None] * WIDTH + c[None, :]
            g = tl.load(grad_ptr + place, mask=mask, other=0.0)
            if TRAINING:
                g -= mean_g[None, :] + tl.load(state_ptr + place, mask=mask, other=0.0) * mean_gs[None, :]
            g = tl.where(mask, g * scale[None, :], 0.0)
            sum_g += tl.sum(g, 0)
            tl.store(grad_ptr + place, g, mask=mask)
        tl.debug_barrier()
    tl.store(added_sums_ptr + own, tl.load(added_sums_ptr + own) + tl.sum(sum_g, 0))
    for edge in range(edges):
        source = tl.load(table_ptr + edge * EDGE + SOURCE)
        at, pitch = edge_product(table_ptr, edge, step, steps, rows, WIDTH)
        grad_at, grad_pitch = edge_product(table_ptr, edge, slot, slots, rows, WIDTH)
        w_tanh, w_relu, w_sigmoid, w_identity = edge_weights(weights_ptr, edge)
        whole = w_tanh + w_relu + w_sigmoid + w_identity
        found_0, found_1 = tl.zeros((BLOCK_D,), ACC), tl.zeros((BLOCK_D,), ACC)
        found_2, found_3 = tl.zeros((BLOCK_D,), ACC), tl.zeros((BLOCK_D,), ACC)
        for first in range(begin, end, BLOCK_R):
            r = first + tl.arange(0, BLOCK_R)
            mask = (r < end)[:, None] & exists[None, :]
            place = r.to(tl.int64)[:, None] * WIDTH + c[None, :]
            inside = r.to(tl.int64)[:, None] * pitch + c[None, :]
            offset = source.to(tl.int64) * rows * WIDTH + place
            g = tl.load(grad_ptr + place, mask=mask, other=0.0)
            s = tl.load(states_ptr + offset, mask=mask, other=0.0)
            gate = sigmoid(tl.load(products_ptr + at + inside, mask=mask, other=0.0).to(ACC))
            h = tl.load(products_ptr + at + inside + WIDTH, mask=mask, other=0.0).to(ACC)
            before = tl.load(grad_states_ptr + offset, mask=mask, other=0.0)
            tl.debug_barrier()  # gradients may take the place of what was read
            of_sigmoid, of_tanh = sigmoid_and_tanh(h)
            positive = relu(h)
            value = w_tanh * of_tanh + w_relu * positive + w_sigmoid * of_sigmoid + w_identity * h
            slope = w_tanh * (1 - of_tanh * of_tanh) + w_sigmoid * of_sigmoid * (1 - of_sigmoid) + w_identity
            slope += tl.where(h > 0, w_relu, 0.0)
            through = g * gate
            T = grad_products_ptr.dtype.element_ty
            of_gate = (through * (1 - gate) * (value - whole * s)).to(T)
            target = grad_products_ptr + grad_at + r.to(tl.int64)[:, None] * grad_pitch + c[None, :]
            tl.store(target, of_gate, mask=mask)
            tl.store(target + WIDTH, (through * slope).to(T), mask=mask)
            tl.store(grad_states_ptr + offset, before + whole * (g - through), mask=mask)
            kept = (g - through) * s
            found_0 += tl.sum(kept + through * of_tanh, 0)
            found_1 += tl.sum(kept + through * positive, 0)
            found_2 += tl.sum(kept + through * of_sigmoid, 0)
            found_3 += tl.sum(kept + through * h, 0)
        sums = sums_ptr + own + edge * ACTIVATIONS
        tl.store(sums + TANH, tl.load(sums + TANH) + tl.sum(found_0, 0))
        tl.store(sums + RELU, tl.load(sums + RELU) + tl.sum(found_1, 0))
        tl.store(sums + SIGMOID, tl.load(sums + SIGMOID) + tl.sum(found_2, 0))
        tl.store(sums + IDENTITY, tl.load(sums + IDENTITY) + tl.sum(found_3, 0))
