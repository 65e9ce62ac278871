// Hopper (sm_90a) instructions as functions: mbarriers, bulk tensor copies, warpgroup matrix products, clusters.
// No header of the toolkit is needed, so NVRTC compiles this alone. Source of every form: PTX ISA 9.0.
#pragma once

#if defined(KT_SM) && !(KT_HAS_TMA && KT_HAS_WGMMA)
#error "needs the features tma and wgmma of the table's architecture"
#endif

#include "overlap.cuh"

#ifdef __CUDACC_RTC__
using uint32_t = unsigned int;
using uint64_t = unsigned long;
using int64_t = long;
#else
#include <stdint.h>
#endif

struct alignas(64) TensorMap {
  char opaque[128];
};

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Whether this is the thread that acts for its warp, always the same one; the warp's threads are all here. The compiler
// knows that a thread chosen so is alone, and puts no loop over threads around each copy that it starts: block FP8 at
// 128 to 256 rows takes up to 8 % less.
__device__ __forceinline__ bool elected() {
  uint32_t chosen = 0;
  asm volatile("{.reg .pred p; .reg .b32 lane; elect.sync lane|p, 0xffffffff; @p mov.b32 %0, 1;}" : "+r"(chosen));
  return chosen != 0;
}

// Where more than one warp of a kernel elects, say `if (in_warp(w)) { if (elected()) ...`: of both at once the compiler makes
// a number, and no longer knows.
__device__ __forceinline__ bool in_warp(int warp) { return threadIdx.x / 32 == warp; }

__device__ __forceinline__ bool elected_in(int warp) { return threadIdx.x / 32 == warp && elected(); }

// --- mbarriers -----------------------------------------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
    "{.reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra again;}"
    ::"r"(barrier), "r"(parity) : "memory");
}

// Whether a wait would end at once.
__device__ __forceinline__ bool barrier_test(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
               : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
  return done != 0;
}

// --- giving back what copies fill ------------------------------------------------------------------------------------

// A barrier that is known when all of these words are there, which are read from the memory that it gives back: `nothing`
// is 0. To arrive at a barrier orders reads before the writes of other threads, not before those of the copy engine: where
// others fill the pipe that reads go through, one waits there for microseconds, the arrival passes it, and it finds what
// the next copy brought. What has arrived in a register was read before.
template <typename... Words>
__device__ __forceinline__ uint32_t after(uint32_t barrier, uint32_t nothing, Words... words) {
  return barrier | ((__float_as_uint(words) | ...) & nothing);
}

// 0, of a size, which is not negative: but the compiler does not know that.
__device__ __forceinline__ uint32_t nothing_of(int size) { return static_cast<uint32_t>(size >> 31); }

// --- bulk tensor copies --------------------------------------------------------------------------------------------

__device__ __forceinline__ void prefetch_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ __forceinline__ void copy_tile(uint32_t to, const TensorMap* map, int column, int row, uint32_t barrier) {
  asm volatile(
    "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
    ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier) : "memory");
}

// `bytes` (a multiple of 16) in one piece, for data that lies in memory as the kernel wants it.
__device__ __forceinline__ void copy_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}

// The same, and what it brings into the L2 cache makes room there first.
__device__ __forceinline__ void copy_bytes_once(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile(
    "{.reg .b64 policy; createpolicy.fractional.L2::evict_first.b64 policy; "
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], policy;}"
    ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}

// The same tile to every block of the cluster whose bit is set in `ranks`, at the same shared address in each.
__device__ __forceinline__ void copy_tile_to(uint32_t to, const TensorMap* map, int column, int row, uint32_t barrier,
                                             unsigned short ranks) {
  asm volatile(
    "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
    "[%0], [%1, {%2, %3}], [%4], %5;"
    ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(ranks) : "memory");
}

// What ordinary stores put into shared memory may be read by the copy engine; by each thread that stored, before the
// threads meet of which one starts the copy.
__device__ __forceinline__ void copies_see_stores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A tile of shared memory to global memory, without what lies outside the matrix.
__device__ __forceinline__ void store_tile(const TensorMap* map, int column, int row, uint32_t from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];"
               ::"l"(map), "r"(column), "r"(row), "r"(from) : "memory");
}

__device__ __forceinline__ void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until the copy engine has read everything that this thread had it store.
__device__ __forceinline__ void stores_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// --- warpgroup matrix products -------------------------------------------------------------------------------------

// A tile of rows of 128 bytes, copied with the 128-byte swizzle, starting at a multiple of 1024 bytes.
__device__ __forceinline__ uint64_t tile_descriptor(uint32_t address) {
  const uint64_t eight_rows = 1024 >> 4, swizzle_128 = 1;
  return (static_cast<uint64_t>(address & 0x3ffff) >> 4) | (1ull << 16) | (eight_rows << 32) | (swizzle_128 << 62);
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending committed groups are still running.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving reads of an accumulator over the instructions that write it.
__device__ __forceinline__ void pin(float& x) { asm volatile("" : "+f"(x)::"memory"); }

template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// --- products of e4m3 tiles ----------------------------------------------------------------------------------------

// The low word of a tile's descriptor (of all, 0x40000040 is the high one): a warp's constant, so that few instructions
// stand between two products. `uniform` tells the compiler that it is one.
__device__ __forceinline__ uint32_t tile_word(uint32_t address) { return (address & 0x3ffff) >> 4 | 1 << 16; }
__device__ __forceinline__ uint32_t uniform(uint32_t x) { return __shfl_sync(0xffffffff, x, 0); }

// Accumulators as operands: %0 to %7 are the descriptors' words.
#define KT_LIST_4 "%8, %9, %10, %11"
#define KT_LIST_8 KT_LIST_4 ", %12, %13, %14, %15"
#define KT_LIST_16 KT_LIST_8 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define KT_LIST_24 KT_LIST_16 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define KT_LIST_32 KT_LIST_24 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define KT_LIST_40 KT_LIST_32 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define KT_LIST_48 KT_LIST_40 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define KT_LIST_56 KT_LIST_48 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define KT_LIST_64 KT_LIST_56 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define KT_LIST_72 KT_LIST_64 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define KT_LIST_80 KT_LIST_72 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define KT_LIST_88 KT_LIST_80 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define KT_LIST_96 KT_LIST_88 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define KT_SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define KT_SUMS_8(i) KT_SUMS_4(i), KT_SUMS_4(i + 4)
#define KT_SUMS_16(i) KT_SUMS_8(i), KT_SUMS_8(i + 8)
#define KT_SUMS_24(i) KT_SUMS_16(i), KT_SUMS_8(i + 16)
#define KT_SUMS_32(i) KT_SUMS_24(i), KT_SUMS_8(i + 24)
#define KT_SUMS_40(i) KT_SUMS_32(i), KT_SUMS_8(i + 32)
#define KT_SUMS_48(i) KT_SUMS_40(i), KT_SUMS_8(i + 40)
#define KT_SUMS_56(i) KT_SUMS_48(i), KT_SUMS_8(i + 48)
#define KT_SUMS_64(i) KT_SUMS_56(i), KT_SUMS_8(i + 56)
#define KT_SUMS_72(i) KT_SUMS_64(i), KT_SUMS_8(i + 64)
#define KT_SUMS_80(i) KT_SUMS_72(i), KT_SUMS_8(i + 72)
#define KT_SUMS_88(i) KT_SUMS_80(i), KT_SUMS_8(i + 80)
#define KT_SUMS_96(i) KT_SUMS_88(i), KT_SUMS_8(i + 88)

#define KT_STEP(n, list, a, b, add)                                              \
  "mov.b64 a, {" a ", 0x40000040}; mov.b64 b, {" b ", 0x40000040}; "             \
  "wgmma.mma_async.sync.aligned.m64n" #n "k32.f32.e4m3.e4m3 {" list "}, a, b, " add ", 1, 1; "
#define KT_MULTIPLY(n, list, sums)                                                        \
  __device__ __forceinline__ void multiply_row(float (&d)[n / 2], uint32_t a, uint32_t b) { \
    uint32_t a1 = a + 2, a2 = a + 4, a3 = a + 6, b1 = b + 2, b2 = b + 4, b3 = b + 6;        \
    asm volatile(                                                                         \
      "{.reg .b64 a, b; .reg .pred no, yes; setp.ne.b32 no, 0, 0; setp.eq.b32 yes, 0, 0; "  \
      KT_STEP(n, list, "%0", "%4", "no") KT_STEP(n, list, "%1", "%5", "yes")                \
      KT_STEP(n, list, "%2", "%6", "yes") KT_STEP(n, list, "%3", "%7", "yes") "}"           \
      : "+r"(a), "+r"(a1), "+r"(a2), "+r"(a3), "+r"(b), "+r"(b1), "+r"(b2), "+r"(b3), sums); \
  }

KT_MULTIPLY(8, KT_LIST_4, KT_SUMS_4(0))
KT_MULTIPLY(16, KT_LIST_8, KT_SUMS_8(0))
KT_MULTIPLY(32, KT_LIST_16, KT_SUMS_16(0))
KT_MULTIPLY(64, KT_LIST_32, KT_SUMS_32(0))
KT_MULTIPLY(80, KT_LIST_40, KT_SUMS_40(0))
KT_MULTIPLY(96, KT_LIST_48, KT_SUMS_48(0))
KT_MULTIPLY(112, KT_LIST_56, KT_SUMS_56(0))
KT_MULTIPLY(128, KT_LIST_64, KT_SUMS_64(0))
KT_MULTIPLY(144, KT_LIST_72, KT_SUMS_72(0))
KT_MULTIPLY(160, KT_LIST_80, KT_SUMS_80(0))
KT_MULTIPLY(192, KT_LIST_96, KT_SUMS_96(0))

// d[64, N] = A[64, 128] * B[N, 128]^T: a whole swizzled row of each tile, named by its word. Starts it; wgmma_wait ends
// it.
template <int kSums>
__device__ __forceinline__ void multiply_tiles(float (&d)[kSums], uint32_t a, uint32_t b) {
  wgmma_fence();
  multiply_row(d, a, b);
  wgmma_commit();
}

// Four 8 x 8 matrices of 16-bit numbers, a row of each a lane's address.
__device__ __forceinline__ void store_matrices(uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
               ::"r"(address), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

// --- clusters ------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Every block of the cluster then finds what the others had stored in their own shared memory, barriers too. Nothing else
// is in order: a release of everything waits for the device's memory, 0.4 to 0.7 us.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("fence.release.sync_restrict::shared::cta.cluster;\n barrier.cluster.arrive.relaxed.aligned;\n"
               "barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Holds a block until the others have done whatever they do to its shared memory.
__device__ __forceinline__ void cluster_end() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Holds a block until every block of its cluster is here, and orders no memory: nobody waits for stores under way. What
// others read from this block has to have reached them, as it has when they used it.
__device__ __forceinline__ void cluster_leave() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n barrier.cluster.wait.aligned;" ::: "memory");
}

// The address in the cluster of a shared address of another block; neighbours of the one are neighbours of the other.
__device__ __forceinline__ uint32_t address_at(uint32_t address, uint32_t rank) {
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}

__device__ __forceinline__ void barrier_arrive_remote(uint32_t remote) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(remote) : "memory");
}

__device__ __forceinline__ void barrier_arrive_at(uint32_t barrier, uint32_t rank) {
  barrier_arrive_remote(address_at(barrier, rank));
}

__device__ __forceinline__ float4 load_remote(uint32_t address, uint32_t rank) {
  uint32_t remote;
  float4 v;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(remote) : "memory");
  return v;
}
