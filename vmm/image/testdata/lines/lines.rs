// Built by hand for lines_test.go:
//
//	rustc -C panic=abort -C opt-level=1 -C debuginfo=1 -C dwarf-version=N \
//	    -C relocation-model=static \
//	    -C link-args="-nostdlib -nostartfiles -static -no-pie -Wl,--build-id=none,-z,noexecstack,-Ttext=0xffff800100100000" \
//	    --remap-path-prefix=$PWD=/src -o lines-dwarfN lines.rs
#![no_std]
#![no_main]

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[inline(never)]
fn inner(n: u64) -> u64 {
    core::hint::black_box(n) + 1
}

#[inline(never)]
#[no_mangle]
pub extern "C" fn outer(n: u64) -> u64 {
    let m = inner(n);
    inner(m) * 2
}

#[no_mangle]
pub extern "C" fn _start() -> ! {
    outer(7);
    loop {}
}
