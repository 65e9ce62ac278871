// Launches that overlap: a kernel that starts while the one before it on the stream still runs. Chips without the feature
// grid_control have no such launch, and the functions are empty, as they are in a test on a CPU. Source: PTX ISA 9.0,
// "griddepcontrol".
//
// A kernel that ops/cuda_launch.py launches early starts once every block of the kernel before it on the stream has
// called let_next_start() or ended. That is right as long as each such kernel keeps four rules:
//   1. Before wait_for_previous() it reads only what was in memory before the kernel before it started: the weight and
//      its scales, which packing has waited for. The input, its scales and the bias are read after it.
//   2. Every block calls wait_for_previous() before it writes to global memory and before it ends, even one without
//      work. So when a kernel has ended all those before it have too, and what waits for it sees their writes.
//   3. let_next_start() comes after wait_for_previous(). So nothing before "the kernel before" of rule 1 still runs.
//   4. What others write for a call is read by copies or plain loads, by threads that have waited themselves. Not by
//      __ldg: the compiler may move that over the wait.
// Kernels that share work out (shares.cuh) take tickets before they wait, of counters that they alone write to, each of them
// before it lets the next one start.
// A kernel that calls neither may come before or after: it is over when an early one behind it starts.
#pragma once

#if KT_HAS_GRID_CONTROL || (!defined(KT_SM) && defined(__CUDACC__))
#define KT_GRID_CONTROL(what) asm volatile("griddepcontrol." what ";" ::: "memory")
#else
#define KT_GRID_CONTROL(what)
#endif

// The kernel after this one may start, as far as there is room, if it was launched to do so.
__device__ __forceinline__ void let_next_start() { KT_GRID_CONTROL("launch_dependents"); }

// Returns when the kernel before this one has ended and its writes can be read. In a usual launch it returns at once.
__device__ __forceinline__ void wait_for_previous() { KT_GRID_CONTROL("wait"); }
