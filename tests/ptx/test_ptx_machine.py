"""The machine that executes PTX: small modules written by hand, each with one thing to find or to get right."""

import pytest
import torch
from ptx_machine import Machine, Program, library

HEAD = ".version 8.0\n.target sm_90\n.address_size 64\n.extern .shared .align 16 .b8 memory[];\n"


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    try:
        library()
    except FileNotFoundError as error:
        pytest.skip(f"needs a C++ compiler: {error}")


def program(body: str, parameters: int = 2) -> Program:
    """A kernel of `body`, whose parameters are pointers p0, p1, ... in %rd0, %rd1, ...; thread number in %r0."""
    names = ", ".join(f".param .u64 p{k}" for k in range(parameters))
    registers = ".reg .b32 %r<40>; .reg .b64 %rd<40>; .reg .f32 %f<40>; .reg .pred %p<8>;"
    loads = " ".join(f"ld.param.u64 %rd{k}, [p{k}];" for k in range(parameters))
    return Program(
        f"{HEAD}.visible .entry kernel({names}) {{\n{registers}\n{loads} mov.u32 %r0, %tid.x;\n{body}\nret;\n}}"
    )


def kinds(machine: Machine) -> set[str]:
    return {finding.kind for finding in machine.findings}


OWN_ELEMENT = "mul.wide.u32 %rd10, %r0, 4; add.s64 %rd11, %rd0, %rd10; add.s64 %rd12, %rd1, %rd10;"


def test_lanes_go_their_own_ways_and_meet_again() -> None:
    body = f"""{OWN_ELEMENT}
    and.b32 %r1, %r0, 3;
    mov.b32 %r2, 0;
    loop: setp.ge.u32 %p0, %r2, %r1;
    @%p0 bra done;
    add.s32 %r2, %r2, 1;
    bra loop;
    done: shfl.sync.bfly.b32 %r3, %r2, 1, 31, -1;
    shl.b32 %r4, %r3, 4; or.b32 %r4, %r4, %r2;
    st.global.u32 [%rd11], %r4;"""
    out, other = torch.zeros(32, dtype=torch.int32), torch.zeros(1)
    machine = Machine()
    machine.run(program(body), (1,), 32, [out, other])
    assert out.tolist() == [((lane ^ 1) & 3) << 4 | lane & 3 for lane in range(32)]
    assert not machine.findings


def test_a_load_and_a_store_out_of_bounds_are_found_and_do_no_harm() -> None:
    body = f"{OWN_ELEMENT} ld.global.f32 %f0, [%rd11+4]; st.global.f32 [%rd12], %f0;"
    source, target = torch.arange(32.0), torch.zeros(31)
    machine = Machine()
    machine.run(program(body), (1,), 32, [source, target])
    assert kinds(machine) == {"read out of bounds", "write out of bounds"}
    assert target.tolist() == [k + 1.0 for k in range(31)]


def test_misaligned_accesses_are_found() -> None:
    body = "add.s64 %rd10, %rd0, 4; ld.global.v2.f32 {%f0, %f1}, [%rd10]; st.global.f32 [%rd1], %f1;"
    machine = Machine()
    machine.run(program(body), (1,), 1, [torch.zeros(8), torch.zeros(1)])
    assert kinds(machine) == {"misaligned access"}


def test_programs_that_write_one_word_race_and_those_that_write_their_own_do_not() -> None:
    own = "mov.u32 %r1, %ctaid.x; mul.wide.u32 %rd10, %r1, 4; add.s64 %rd11, %rd0, %rd10;"
    machine = Machine()
    machine.run(program(f"{own} st.global.u32 [%rd11], %r1;"), (8,), 1, [torch.zeros(8), torch.zeros(1)])
    assert not machine.findings
    machine.run(program(f"{own} st.global.u32 [%rd0], %r1;"), (8,), 1, [torch.zeros(8), torch.zeros(1)])
    assert kinds(machine) == {"write and another access in any order"}


def test_a_program_that_reads_what_another_writes_races_whatever_the_order() -> None:
    body = """mov.u32 %r1, %ctaid.x; setp.eq.u32 %p0, %r1, 0;
    @%p0 st.global.u32 [%rd0], 5; @!%p0 ld.global.u32 %r2, [%rd0];"""
    for seed in range(4):
        machine = Machine(seed=seed)
        machine.run(program(body), (3,), 1, [torch.zeros(1), torch.zeros(1)])
        assert machine.findings, seed


BARRIER = """.file 1 "kernel.py"
    shl.b32 %r1, %r0, 2; mov.u32 %r2, memory; add.s32 %r3, %r1, %r2;
    .loc 1 6 0
    st.shared.u32 [%r3], %r0;
    .loc 1 7 0
    bar.sync 0;
    .loc 1 8 0
    xor.b32 %r4, %r1, 128; add.s32 %r5, %r4, %r2;
    ld.shared.u32 %r6, [%r5];
    mul.wide.u32 %rd10, %r0, 4; add.s64 %rd11, %rd0, %rd10;
    st.global.u32 [%rd11], %r6;"""


def test_warps_race_without_the_barrier_between_them() -> None:
    kernel = program(BARRIER)
    assert kernel.barriers() == ["kernel.py:7"]
    out = torch.zeros(64, dtype=torch.int32)
    machine = Machine()
    machine.run(kernel, (1,), 64, [out, torch.zeros(1)], shared=256)
    assert out.tolist() == [lane ^ 32 for lane in range(64)]
    assert not machine.findings
    kernel.without_barriers_at("kernel.py:7")
    for seed in range(4):
        machine = Machine(seed=seed)
        machine.run(kernel, (1,), 64, [out, torch.zeros(1)], shared=256)
        assert {finding.place for finding in machine.findings} & {"kernel.py:6", "kernel.py:8"}, seed
    kernel.without_barriers_at("")
    machine = Machine()
    machine.run(kernel, (1,), 64, [out, torch.zeros(1)], shared=256)
    assert not machine.findings


def test_a_barrier_that_some_lanes_miss_ends_the_launch() -> None:
    body = "setp.lt.u32 %p0, %r0, 3; @%p0 bra over; bar.sync 0; over: mov.u32 %r1, 0;"
    with pytest.raises(RuntimeError, match="barrier that only some lanes reach"):
        Machine().run(program(body), (1,), 32, [torch.zeros(1), torch.zeros(1)])


def test_copies_land_when_they_are_waited_for() -> None:
    body = """mov.u32 %r2, memory;
    cp.async.ca.shared.global [%r2], [%rd0], 16;
    cp.async.commit_group;
    ld.shared.f32 %f0, [%r2]; st.global.f32 [%rd1], %f0;
    cp.async.wait_group 0;
    ld.shared.f32 %f1, [%r2+8]; st.global.f32 [%rd1+4], %f1;"""
    out = torch.zeros(2)
    machine = Machine()
    machine.run(program(body), (1,), 1, [torch.arange(4.0), out], shared=16)
    assert out.isnan().tolist() == [True, False]
    assert out[1] == 2
    assert not machine.findings


def test_shared_memory_and_registers_begin_as_nan() -> None:
    body = "mov.u32 %r2, memory; ld.shared.f32 %f0, [%r2]; add.f32 %f1, %f0, %f2; st.global.v2.f32 [%rd0], {%f0, %f1};"
    out = torch.zeros(2)
    Machine().run(program(body), (1,), 1, [out, torch.zeros(1)], shared=16)
    assert out.isnan().all()


def wgmma(fence: str) -> str:
    """Rows of 16 ones, by a warp group, times numbers 0 to 7 in B's columns, which lie in two core matrices."""
    sums = ", ".join(f"%f{k}" for k in range(4))
    return f"""mov.u32 %r2, memory;
    shl.b32 %r3, %r0, 2; add.s32 %r4, %r2, %r3;  // 16 columns of 8 numbers: word t holds two numbers of row t / 4 % 8
    shr.u32 %r5, %r0, 2; and.b32 %r5, %r5, 7; cvt.rn.f32.u32 %f10, %r5; cvt.rn.bf16x2.f32 %r6, %f10, %f10;
    setp.lt.u32 %p0, %r0, 64;
    @%p0 st.shared.u32 [%r4], %r6;
    {fence}
    bar.sync 0;
    mov.b64 %rd20, {(128 >> 4) << 16 | (256 >> 4) << 32};
    mov.b32 %r7, 0x3f803f80;
    setp.eq.u32 %p1, 0, 1;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{{sums}}}, {{%r7, %r7, %r7, %r7}}, %rd20, %p1, 1, 1, 0;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    mul.wide.u32 %rd10, %r0, 16; add.s64 %rd11, %rd0, %rd10;
    st.global.v4.f32 [%rd11], {{{sums}}};"""


def test_a_warp_groups_product_and_the_fence_that_it_needs() -> None:
    out = torch.zeros(128, 4)
    machine = Machine()
    machine.run(program(wgmma("fence.proxy.async.shared::cta;")), (1,), 128, [out, torch.zeros(1)], shared=256)
    columns = torch.tensor([[2 * (lane % 4), 2 * (lane % 4) + 1] * 2 for lane in range(128)])
    assert torch.equal(out, 16.0 * columns)
    assert not machine.findings
    after = wgmma("").replace("bar.sync 0;", "bar.sync 0; fence.proxy.async.shared::cta;")
    machine.run(program(after), (1,), 128, [out, torch.zeros(1)], shared=256)  # by readers, once they know of the write
    assert not machine.findings
    machine.run(program(wgmma("")), (1,), 128, [out, torch.zeros(1)], shared=256)
    assert kinds(machine) == {"read by a product without fence.proxy.async after the write"}


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("sub.s32 %r1, 3, 5", 2**32 - 2),
        ("shr.s32 %r1, -8, 1", 2**32 - 4),
        ("mul.hi.u32 %r1, 0x80000000, 6", 3),
        ("mad.lo.s32 %r1, 7, 6, -2", 40),
        ("bfe.s32 %r1, 0x70, 4, 3", 2**32 - 1),
        ("bfe.u32 %r1, 0x1234, 4, 8", 0x23),
        ("bfi.b32 %r1, 0xf, 0, 8, 4", 0xF00),
        ("prmt.b32 %r1, 0x33221100, 0x77665544, 0x5410", 0x55441100),
        ("lop3.b32 %r1, 12, 10, 6, 0x96", 12 ^ 10 ^ 6),
        ("shf.l.wrap.b32 %r1, 0x80000000, 1, 4", 0x18),
        ("clz.b32 %r1, 0xffff", 16),
        ("brev.b32 %r1, 1", 2**31),
        ("cvt.rni.s32.f32 %r1, 0f40200000", 2),  # 2.5, ties to even
        ("cvt.rzi.s32.f32 %r1, 0fCF800000", 2**31),  # -2^32, clamped
        ("cvt.rn.bf16x2.f32 %r1, 0f3F800000, 0f3F808000", 0x3F803F80),  # 1 + 2^-8, ties to even
        ("max.NaN.f32 %r1, 0f7FC00000, 0f3F800000", 0x7FC00000),
        ("max.f32 %r1, 0f7FC00000, 0f3F800000", 0x3F800000),
        ("add.rn.bf16x2 %r1, 0x3F804000, 0x3F80BF80", 0x40003F80),  # 1 + 1 and 2 - 1
        ("div.s32 %r1, -7, 2", 2**32 - 3),
    ],
)
def test_arithmetic(instruction: str, expected: int) -> None:
    out = torch.zeros(1, dtype=torch.int64)
    Machine().run(program(f"{instruction}; cvt.u64.u32 %rd10, %r1; st.global.u64 [%rd0], %rd10;"), (1,), 1, [out, out])
    assert out.item() == expected


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="tex"):
        program("tex.2d.v4.f32.s32 {%f0, %f1, %f2, %f3}, [%rd0, {%r0, %r0}];")
    with pytest.raises(RuntimeError, match="endless"):
        Machine(most_instructions=1000).run(program("again: bra again;"), (1,), 32, [torch.zeros(1), torch.zeros(1)])
