// The kernels beside this file on a CPU, for tests on machines without a GPU: a block's threads are fibers that take turns, and
// whatever threads do together (barriers, shuffles, matrix products of a warp) waits until all have come. Copies to shared
// memory arrive as late as the kernel allows: when it waits for them. Shared memory begins as garbage, so that nothing works
// by chance. Compiled by the tests with the same definitions as for a GPU; see ../emulate.rs.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

typedef unsigned int u32;
typedef unsigned long long u64;

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(n)
#define __shared__ static
#define DYNAMIC_SHARED(name) unsigned char* name = block_memory

struct int4 { int x, y, z, w; };
struct uint4 { unsigned x, y, z, w; };
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
struct float2 { float x, y; };
static float2 make_float2(float x, float y) { return {x, y}; }
struct Index { unsigned x, y, z; };

// ---- fibers ----

static const int MOST = 1024, STACK = 64 * 1024;
struct Copy { unsigned char* to; const void* from; };
struct Fiber {
    void* stack_pointer;
    unsigned char* stack;
    bool done;
    Index index;
    std::vector<std::vector<Copy>> groups; // the last one is still open
};
struct Warp {
    int arrived;
    u64 round;
    u64 slots[2][32];
    float results[2][32][4];
};
static Fiber fibers[MOST];
static Warp warps[MOST / 32];
static int current, count, barrier_arrived;
static u64 barrier_round, turns;
static void* host_pointer;
static unsigned char* block_memory;
static Index blockIdx, blockDim, gridDim;
static void (*body)(void**);
static void** arguments;
#define threadIdx (fibers[current].index)

// Saves the callee's registers on this stack, and goes on where `to` was saved.
extern "C" void change(void** from, void* to);
asm(R"(
.text
.globl change
change:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

// To the next thread that has not ended; to the host when none is left.
static void yield() {
    int from = current;
    if (++turns > 100000000) abort(); // threads wait for some that never come
    for (int i = 1; i <= count; i++) {
        int next = (from + i) % count;
        if (!fibers[next].done) {
            current = next;
            if (next != from) change(&fibers[from].stack_pointer, fibers[next].stack_pointer);
            return;
        }
    }
    change(&fibers[from].stack_pointer, host_pointer);
}
static void enter() {
    body(arguments);
    fibers[current].done = true;
    yield();
    abort();
}
static void run_block(int threads, int shared) {
    count = threads;
    barrier_arrived = 0;
    memset(block_memory, 0xff, shared + 64);
    for (int i = 0; i < threads / 32; i++) warps[i].arrived = 0;
    for (int i = 0; i < threads; i++) {
        Fiber& fiber = fibers[i];
        if (!fiber.stack) fiber.stack = (unsigned char*)aligned_alloc(64, STACK);
        fiber.done = false;
        fiber.index = {(unsigned)i, 0, 0};
        fiber.groups.assign(1, {});
        void** top = (void**)(fiber.stack + STACK);
        *--top = nullptr;       // aligns the stack as a call would
        *--top = (void*)enter;  // where `change` returns to
        top -= 6;               // its six registers
        fiber.stack_pointer = top;
    }
    current = 0;
    turns = 0;
    change(&host_pointer, fibers[0].stack_pointer);
}

// ---- what threads do together ----

static void __syncthreads() {
    u64 round = barrier_round;
    if (++barrier_arrived == count) {
        barrier_arrived = 0;
        barrier_round++;
    }
    while (barrier_round == round) yield();
}
static Warp& warp_of() { return warps[current / 32]; }
// Leaves a value, waits for the warp, and returns which of the two sets of slots is complete.
static int meet(u64 value) {
    Warp& warp = warp_of();
    u64 round = warp.round;
    int set = round & 1;
    warp.slots[set][current % 32] = value;
    if (++warp.arrived == 32) {
        warp.arrived = 0;
        warp.round++;
    }
    while (warp.round == round) yield();
    return set;
}
template <typename V> static V __shfl_xor_sync(u32, V value, int distance) {
    u64 bits = 0;
    memcpy(&bits, &value, sizeof value);
    int lane = current % 32, set = meet(bits);
    memcpy(&value, &warp_of().slots[set][lane ^ distance], sizeof value);
    return value;
}

static float __uint_as_float(u32 x) { float y; memcpy(&y, &x, 4); return y; }
static float __int_as_float(int x) { return __uint_as_float((u32)x); }
static u32 __float_as_uint(float x) { u32 y; memcpy(&y, &x, 4); return y; }
static unsigned short to_half(float x) {
    u32 bits = __float_as_uint(x);
    if (x != x) return 0x7fff;
    return (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
static float from_half(unsigned short x) { return __uint_as_float((u32)x << 16); }
static u32 pack(float low, float high) { return to_half(low) | (u32)to_half(high) << 16; }

// The fragments of all lanes: a pointer each, read while everybody waits.
struct Fragments { const u32* a; u32 b[2]; };
static void product(float* c, const u32* a, u32 b0, u32 b1) {
    Fragments mine = {a, {b0, b1}};
    int lane = current % 32, g = lane / 4, t = lane % 4, set = meet((u64)&mine);
    auto of = [&](int l) { return (const Fragments*)warp_of().slots[set][l]; };
    auto part = [](u32 both, int i) { return from_half((unsigned short)(i ? both >> 16 : both)); };
    float sums[4];
    for (int i = 0; i < 4; i++) {
        int row = g + 8 * (i / 2), column = 2 * t + i % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) {
            // Column k of a lies with lane (row % 8, (k % 8) / 2), row k of b with lane (column, (k % 8) / 2).
            const Fragments* left = of((row % 8) * 4 + (k % 8) / 2);
            const Fragments* right = of(column * 4 + (k % 8) / 2);
            sum += part(left->a[row / 8 + 2 * (k / 8)], k % 2) * part(right->b[k / 8], k % 2);
        }
        sums[i] = sum;
    }
    meet(0); // nobody's operands go away before all have read them
    for (int i = 0; i < 4; i++) c[i] += sums[i];
}
static u32 shared_address(const void* p) { return (u32)((const unsigned char*)p - block_memory); }
static void load_matrices(u32* r, u32 address, bool turned) {
    int lane = current % 32, g = lane / 4, t = lane % 4, set = meet(address);
    for (int m = 0; m < 4; m++) {
        unsigned short pair[2];
        for (int i = 0; i < 2; i++) {
            int row = turned ? 2 * t + i : g, column = turned ? g : 2 * t + i;
            memcpy(&pair[i], block_memory + warp_of().slots[set][m * 8 + row] + 2 * column, 2);
        }
        r[m] = pair[0] | (u32)pair[1] << 16;
    }
    meet(0); // nobody writes before all have read
}
static void matrices(u32* r, u32 address) { load_matrices(r, address, false); }
static void matrices_turned(u32* r, u32 address) { load_matrices(r, address, true); }
static void copy_later(u32 to, const void* from) {
    fibers[current].groups.back().push_back({block_memory + to, from});
}
static void copies_end() { fibers[current].groups.emplace_back(); }
template <int N> static void copies_wait() {
    auto& groups = fibers[current].groups;
    while (groups.size() > N + 1) {
        for (const Copy& copy : groups.front()) memcpy(copy.to, copy.from, 16);
        groups.erase(groups.begin());
    }
}
static int atomicAdd(int* at, int value) { int before = *at; *at += value; return before; }

static float rsqrtf(float x) { return 1 / sqrtf(x); }
#define __expf expf
#define __logf logf
static u64 __float2ull_rn(float x) { return (u64)llrintf(x); }
template <typename V> static V min(V a, V b) { return a < b ? a : b; }
template <typename V> static V max(V a, V b) { return a > b ? a : b; }

#include "base.cu"
#include "rows.cu"
#include "attend.cu"
#include "draw.cu"

// ---- the host's side ----

template <typename... P, size_t... I>
static void call(void (*kernel)(P...), void** a, std::index_sequence<I...>) { kernel(*(P*)a[I]...); }
#define KERNEL(name) \
    if (wanted == #name) { \
        body = [](void** a) { apply(name, a); }; \
        found = true; \
    }
template <typename... P> static void apply(void (*kernel)(P...), void** a) {
    call(kernel, a, std::index_sequence_for<P...>{});
}

// Runs all blocks, one after another. Returns 0, or 1 where there is no kernel of that name.
extern "C" int repro_launch(const char* name, unsigned x, unsigned y, unsigned threads, unsigned shared, void** given) {
    static size_t size;
    std::string wanted = name;
    bool found = false;
    KERNEL(embed) KERNEL(rms_norm) KERNEL(heads) KERNEL(gate) KERNEL(copy_page) KERNEL(attend_plain) KERNEL(draw)
#ifdef CHUNKS
    KERNEL(attend_prompts) KERNEL(attend_tokens)
#endif
    if (!found || threads > MOST || threads % 32) return 1;
    if (size < shared + 64 || !block_memory) {
        free(block_memory);
        size = shared + 64;
        block_memory = (unsigned char*)aligned_alloc(128, (size + 127) / 128 * 128);
    }
    arguments = given;
    blockDim = {threads, 1, 1};
    gridDim = {x, y, 1};
    for (unsigned j = 0; j < y; j++)
        for (unsigned i = 0; i < x; i++) {
            blockIdx = {i, j, 0};
            run_block(threads, shared);
        }
    return 0;
}
