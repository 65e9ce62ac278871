// Work that the blocks of a launch share out before each of them needs all of it: an input that they quantize together.
//
// It is cut into `shares`. A block takes a ticket for the next one until there is none left, and waits for the shares of
// others only then. So each share is with a block that runs, however few of them find room beside other work.
//
// Tickets are given in order, so work may wait for shares before its own: those are with blocks that run, too.
//
// Tickets are taken before wait_for_previous(): a launch before this one has given all of its own when this one starts,
// since each of its blocks lets the next one start after its last ticket. Wants hopper.cuh before it.
#pragma once

// What the blocks of a launch agree by: zeros before and after. Launches that use the same follow each other on a stream,
// and no other kernel writes there.
struct Counters {
  uint32_t next;     // tickets given: each block gets one that is in vain, the last of which sets this to zero
  uint32_t done;     // shares that are ready
  uint32_t left;     // blocks that know that all are; the last one sets `done` to zero
  uint32_t largest;  // for the work itself, which leaves zero here
};

__device__ __forceinline__ uint32_t load_acquire(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

// Copies of the engine and plain stores to global memory keep the order that they have in the program.
__device__ __forceinline__ void copies_and_stores_in_order() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

__device__ __forceinline__ uint32_t next_ticket(Counters* counters, int shares) {
  return atomicInc(&counters->next, shares + gridDim.x - 1);
}

// kThreads threads, from kFirst on, until no share is left: work(share) by all of them. `ticket` is shared memory with the
// first one in it.
template <int kThreads, int kFirst = 0, typename Work>
__device__ __forceinline__ void work_shares(const Work& work, Counters* counters, uint32_t* ticket, int shares) {
#pragma unroll 1
  for (uint32_t share = *ticket; share < shares; share = *ticket) {
    work(share);
    copies_and_stores_in_order();
    asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
    if (threadIdx.x == kFirst) {
      __threadfence();
      atomicAdd(&counters->done, 1u);
      *ticket = next_ticket(counters, shares);
    }
    asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
  }
}

// By one thread of each block before it copies what the shares left; it also calls know_shares() after that.
__device__ __forceinline__ void wait_for_shares(Counters* counters, int shares) {
  while (load_acquire(&counters->done) < shares) {}
  copies_and_stores_in_order();
}

// Whether this block is the last one to know.
__device__ __forceinline__ bool know_shares(Counters* counters) {
  const bool last = atomicInc(&counters->left, gridDim.x - 1) == gridDim.x - 1;
  if (last) counters->done = 0;
  return last;
}

// What other blocks have written in this launch, and this thread knows to be there.
__device__ __forceinline__ uint32_t load_relaxed(const void* from) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

// The shares of a launch, or none where the kernel before it has made the input: what one thread of each block does before
// it copies that, and after it has begun to.
struct Shares {
  Counters* counters;
  int count;

  // The block's first ticket, before its threads meet.
  template <int kFirst>
  __device__ __forceinline__ void start(uint32_t* ticket) const {
    if (count > 0 && threadIdx.x == kFirst) *ticket = next_ticket(counters, count);
  }

  __device__ __forceinline__ void wait() const {
    wait_for_previous();
    if (count == 0) let_next_start();  // else after the last ticket
    else wait_for_shares(counters, count);
  }

  __device__ __forceinline__ void know() const {
    if (count > 0 && know_shares(counters)) counters->largest = 0;
  }

  // By kThreads threads from kFirst on; `ticket` as work_shares() has it.
  template <int kThreads, int kFirst, typename Work>
  __device__ __forceinline__ void work(const Work& work, uint32_t* ticket) const {
    if (count == 0) return;
    wait_for_previous();
    work_shares<kThreads, kFirst>(work, counters, ticket, count);
    if (threadIdx.x == kFirst) let_next_start();
  }
};
