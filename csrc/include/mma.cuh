// Warp instructions from SM80 on as functions: asynchronous 16-byte copies, ldmatrix, mma.sync. FP8 products from SM89 on.
// No header of the toolkit is needed, so NVRTC compiles this alone. Source of every form and of every layout: PTX ISA 9.0,
// "Data Movement: cp.async", "ldmatrix", "Matrix fragments for mma.m16n8k16" and "... for mma.m16n8k32".
//
// A thread's place in a fragment is g = lane / 4 and t = lane % 4. An 8 x 8 matrix of ldmatrix is 8 rows of 16 bytes, of
// which a thread gets bytes 4 t to 4 t + 3 of row g: two 16-bit or four 8-bit numbers that are neighbours along k.
#pragma once

#if defined(KT_SM) && !(KT_HAS_CP_ASYNC && KT_HAS_LDMATRIX)
#error "needs the features cp_async and ldmatrix of the table's architecture"
#endif

#ifdef __CUDACC_RTC__
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using int64_t = long;
#else
#include <stdint.h>
#endif

__device__ __forceinline__ uint32_t shared_offset(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// --- asynchronous copies -------------------------------------------------------------------------------------------

// 16 bytes past the first-level cache; the first `bytes` (0 to 16) are read, the others become zeros.
__device__ __forceinline__ void copy_16(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// 4 bytes, through the first-level cache.
__device__ __forceinline__ void copy_4(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending groups of this thread's copies are still under way.
template <int kPending>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// --- fragments -----------------------------------------------------------------------------------------------------

// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

// --- shared memory -------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t load_4(uint32_t address) {
  uint32_t found;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(found) : "r"(address) : "memory");
  return found;
}

__device__ __forceinline__ uint4 load_16(uint32_t address) {
  uint4 found;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(found.x), "=r"(found.y), "=r"(found.z), "=r"(found.w) : "r"(address) : "memory");
  return found;
}

// Waits for kThreads threads, whole warps of a block, that name the same barrier of 1 to 15.
template <int kThreads>
__device__ __forceinline__ void sync_some(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

// --- products ------------------------------------------------------------------------------------------------------

// d[16, 8] += A[16, 32] * B[8, 32]^T, e4m3. a: rows g, g + 8, g, g + 8; bytes 4 t, of the second pair 16 + 4 t.
// b0, b1: row g, bytes 4 t and 16 + 4 t. d: row g, columns 2 t and 2 t + 1, then row g + 8.
__device__ __forceinline__ void multiply_e4m3(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm(
    "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d[16, 8] += A[16, 16] * B[8, 16]^T of bf16, or of f16 with kHalf. a: rows g, g + 8, g, g + 8; columns 2 t and 2 t + 1, of
// the second pair 8 + 2 t and 9 + 2 t. b0, b1: row g, columns 2 t and 8 + 2 t, each with its neighbour. d as above.
template <bool kHalf>
__device__ __forceinline__ void multiply_16(float (&d)[4], const uint32_t* a, uint32_t b0, uint32_t b1) {
  if (kHalf)
    asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
