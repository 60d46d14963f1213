/*
 * smp
 *
 * Every CPU reports in by a log record. Then all of them work on shared state,
 * under a spinlock, by atomics and under a mutex whose owners change CPUs. CPU
 * 0 checks the sums: exit code 0, or 1.
 */
#include "../kernel/kernel.h"

enum { ROUNDS = 64, MUTEX_ROUNDS = 8 };

static struct spinlock lock;
static struct mutex mutex;
static u64 under_lock, by_atomics, under_mutex, done;
static struct thread *main_thread;

static void work(void *unused) {
	(void)unused;
	log(LOG_INFO, "cpu %u reports in", (u64)this_cpu()->index);
	for (u32 i = 0; i < ROUNDS; i++) {
		spin_lock(&lock);
		under_lock++;
		spin_unlock(&lock);
		__atomic_add_fetch(&by_atomics, 1, __ATOMIC_RELAXED);
	}
	for (u32 i = 0; i < MUTEX_ROUNDS; i++) {
		mutex_lock(&mutex);
		u64 value = under_mutex;
		thread_yield();
		under_mutex = value + 1;
		mutex_unlock(&mutex);
	}
	if (__atomic_add_fetch(&done, 1, __ATOMIC_ACQ_REL) == boot->cpu_count)
		thread_wake(main_thread);
}

int program_main(void) {
	u64 n = boot->cpu_count;

	main_thread = thread_current();
	for (u32 cpu = 0; cpu < n; cpu++)
		if (thread_start(cpu, work, NULL))
			panic("no memory for a thread");
	while (__atomic_load_n(&done, __ATOMIC_ACQUIRE) != n)
		thread_sleep();
	log(LOG_INFO, "%u cpus: %u under a lock, %u by atomics, %u under a mutex", n, under_lock, by_atomics, under_mutex);
	return under_lock != n * ROUNDS || by_atomics != n * ROUNDS || under_mutex != n * MUTEX_ROUNDS;
}
