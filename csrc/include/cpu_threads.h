// A small pool of sleeping threads. One job at a time; a second caller, or a job inside a job, runs on its own thread.
// A forked child starts a pool of its own. The result of a job must not depend on which thread ran which part.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace kt {

class Pool {
  public:
    using Body = void (*)(void*);

    // Runs body(context) on the caller and on up to threads - 1 others; returns when all of them have finished.
    void run(int threads, Body body, void* context) {
        std::unique_lock<std::mutex> turn(gate_, std::try_to_lock);
        if (threads <= 1 || !turn.owns_lock() || !grow(threads - 1)) return body(context);
        {
            std::lock_guard<std::mutex> guard(state_);
            body_ = body, context_ = context, open_ = threads - 1;
        }
        wake_.notify_all();
        body(context);
        std::unique_lock<std::mutex> guard(state_);
        open_ = 0;  // whoever has not woken up yet is no longer needed
        idle_.wait(guard, [this] { return running_ == 0; });
    }

  private:
    bool grow(int wanted) {
        try {
            for (; workers_ < wanted; ++workers_) std::thread(&Pool::work, this).detach();
        } catch (const std::system_error&) {
            return workers_ > 0;  // no more threads to be had: go on with those there are
        }
        return true;
    }

    void work() {
        std::unique_lock<std::mutex> guard(state_);
        for (;;) {
            wake_.wait(guard, [this] { return open_ > 0; });
            --open_, ++running_;
            const Body body = body_;
            void* const context = context_;
            guard.unlock();
            body(context);
            guard.lock();
            if (--running_ == 0) idle_.notify_one();
        }
    }

    std::mutex gate_, state_;
    std::condition_variable wake_, idle_;
    Body body_ = nullptr;
    void* context_ = nullptr;
    int open_ = 0, running_ = 0, workers_ = 0;
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
