// A small pool of threads. One job at a time; a second caller, or a job inside a job, runs on its own thread. A forked
// child starts a pool of its own. The result of a job must not depend on which thread ran which part.
#pragma once

#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

namespace kt {

// How long a thread looks for its next job, or for the end of one, before it sleeps. Layers of a model follow one another
// within some 100 us; waking a thread takes as long as reading 2 MiB of weights (on a virtual machine 30 to 120 us).
constexpr std::chrono::microseconds PATIENCE{200};

// True as soon as ready() is; false if that takes longer than PATIENCE. Meanwhile any other thread may have the processor.
template <typename Ready>
bool await(Ready ready) {
    const auto end = std::chrono::steady_clock::now() + PATIENCE;
    for (;;) {
        for (int i = 0; i < 32; ++i) {
            if (ready()) return true;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
        if (std::chrono::steady_clock::now() > end) return false;
        sched_yield();
    }
}

class Pool {
  public:
    using Body = void (*)(void*);

    // Runs body(context) on the caller and on up to threads - 1 others; returns when all of them have finished.
    void run(int threads, Body body, void* context) {
        std::unique_lock<std::mutex> turn(gate_, std::try_to_lock);
        if (threads <= 1 || !turn.owns_lock() || !grow(threads - 1)) return body(context);
        body_ = body, context_ = context;
        state_ = static_cast<uint64_t>(threads - 1);
        if (asleep_ > 0) notify(wake_);
        body(context);
        state_ &= ~OPEN;  // whoever has not come yet is no longer needed
        const auto done = [this] { return state_ == 0; };
        if (await(done)) return;
        std::unique_lock<std::mutex> guard(sleep_);
        waiting_ = true;
        idle_.wait(guard, done);
        waiting_ = false;
    }

  private:
    static constexpr uint64_t OPEN = 0xffffffffu, RUNNING = OPEN + 1;

    bool grow(int wanted) {
        try {
            for (; workers_ < wanted; ++workers_) std::thread(&Pool::work, this).detach();
        } catch (const std::system_error&) {
            return workers_ > 0;  // no more threads to be had: go on with those there are
        }
        return true;
    }

    // True if this thread is to run the job, which it then counts among those running.
    bool take() {
        uint64_t state = state_;
        while (state & OPEN) {
            if (state_.compare_exchange_weak(state, state - 1 + RUNNING)) return true;
        }
        return false;
    }

    void work() {
        const auto taken = [this] { return take(); };
        for (;;) {
            if (!await(taken)) {
                std::unique_lock<std::mutex> guard(sleep_);
                ++asleep_;
                wake_.wait(guard, taken);
                --asleep_;
            }
            body_(context_);
            if (state_.fetch_sub(RUNNING) == RUNNING && waiting_) notify(idle_);
        }
    }

    // A sleeper has said so before it looked at the state for the last time, and holds the mutex until it sleeps.
    void notify(std::condition_variable& sleeper) {
        { const std::lock_guard<std::mutex> guard(sleep_); }
        sleeper.notify_all();
    }

    std::mutex gate_, sleep_;
    std::condition_variable wake_, idle_;
    std::atomic<uint64_t> state_{0};  // the number of threads that run a job times RUNNING, plus the places still open
    std::atomic<int> asleep_{0};
    std::atomic<bool> waiting_{false};
    Body body_ = nullptr;
    void* context_ = nullptr;
    int workers_ = 0;
};

// The pool of this process; never destroyed, since its threads sleep in it until the process ends.
inline Pool& pool() {
    struct Owned {
        pid_t owner;
        Pool pool;
    };
    static std::atomic<Owned*> current{nullptr};
    Owned* known = current.load();
    while (!known || known->owner != getpid()) {
        Owned* fresh = new Owned{getpid(), {}};
        if (current.compare_exchange_strong(known, fresh)) return fresh->pool;
        delete fresh;
    }
    return known->pool;
}

}  // namespace kt
