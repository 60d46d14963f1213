/*
 * Rings and their reference counts. Like the real ones they take a set flag for
 * the end even when there is something left to read.
 */
#include "rpc.h"

/* In the block before the ring. */
struct counts {
	u64 strong, weak;
};

static struct counts *counts(struct ring *r) { return (struct counts *)r - 1; }

void pipe_attach(struct pipe *p, u64 rx, u64 rx_length, u64 tx, u64 tx_length) {
	*p = (struct pipe){at(rx), at(tx), rx_length, tx_length};
	assert_that(counts(p->rx)->strong == 2 && counts(p->rx)->weak == 1, "counts of a new ring");
	assert_that(counts(p->tx)->strong == 2 && counts(p->tx)->weak == 1, "counts of a new ring");
}

/* Says that a cursor has moved, or a flag was set. */
static void moved(const struct ring *r, int written) {
	if (notifying && written)
		notify_read(offset_of(r));
	else if (notifying)
		notify_write(offset_of(r));
}

static u64 load(const u64 *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static void store(u64 *p, u64 v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }

/* What lies in one piece. */
static u64 read_some(struct pipe *p, void *data, u64 n) {
	struct ring *r = p->rx;

	wait_until(load(&r->write_cursor) != r->read_cursor);
	assert_that(!__atomic_load_n(&r->writer_closed, __ATOMIC_ACQUIRE), "Closed, while reading");
	u64 start = r->read_cursor % p->rx_length, end = load(&r->write_cursor) % p->rx_length;
	if (end < start)
		end = p->rx_length;
	n = MIN(n, end - start);
	memcpy(data, r->data + start, n);
	store(&r->read_cursor, r->read_cursor + n);
	moved(r, 0);
	return n;
}

static u64 write_some(struct pipe *p, const void *data, u64 n) {
	struct ring *r = p->tx;
	u64 length = p->tx_length;

	wait_until((load(&r->read_cursor) + length - 1) % length != r->write_cursor % length);
	assert_that(!__atomic_load_n(&r->reader_closed, __ATOMIC_ACQUIRE), "Closed, while writing");
	u64 start = r->write_cursor % length, end = (load(&r->read_cursor) + length - 1) % length;
	if (end < start)
		end = length;
	n = MIN(n, end - start);
	memcpy(r->data + start, data, n);
	store(&r->write_cursor, r->write_cursor + n);
	moved(r, 1);
	return n;
}

void pipe_write(struct pipe *p, const void *data, u64 n) {
	for (u64 done = 0; done < n;)
		done += write_some(p, (const u8 *)data + done, n - done);
}

void pipe_read(struct pipe *p, void *data, u64 n) {
	for (u64 done = 0; done < n;)
		done += read_some(p, (u8 *)data + done, n - done);
}

static void drop(struct ring *r, u64 length, u8 *flag) {
	__atomic_store_n(flag, 1, __ATOMIC_RELEASE);
	if (__atomic_sub_fetch(&counts(r)->strong, 1, __ATOMIC_ACQ_REL))
		return;
	assert_that(__atomic_sub_fetch(&counts(r)->weak, 1, __ATOMIC_ACQ_REL) == 0, "the weak count of all strong ones");
	block_free(counts(r), sizeof(struct counts) + ((__builtin_offsetof(struct ring, data) + length + 7) & ~7ul));
}

void pipe_drop(struct pipe *p) {
	drop(p->rx, p->rx_length, &p->rx->reader_closed);
	moved(p->rx, 0);
	drop(p->tx, p->tx_length, &p->tx->writer_closed);
	moved(p->tx, 1);
}
