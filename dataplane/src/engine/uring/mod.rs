//! The driver on io_uring.
#![allow(unused_variables)]
use super::driver::*;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;
/// See the module's doc.
#[derive(Debug)]
pub struct Uring {
    _todo: (),
}
impl Uring {
    /// Opens it, in the thread that will use it.
    pub fn open() -> io::Result<Self> {
        return Err(io::ErrorKind::Unsupported.into());
        #[allow(unreachable_code)]
        todo!()
    }
}
impl Driver for Uring {
    fn listen(&mut self, socket: OwnedFd) -> io::Result<Token> {
        todo!()
    }
    fn stream(&mut self, socket: OwnedFd) -> io::Result<Token> {
        todo!()
    }
    fn connect(&mut self, address: SocketAddr) -> io::Result<Token> {
        todo!()
    }
    fn datagram(&mut self, socket: OwnedFd) -> io::Result<Token> {
        todo!()
    }
    fn packets(&mut self, device: OwnedFd, max_packet: usize) -> io::Result<Token> {
        todo!()
    }
    fn send(&mut self, token: Token, buffer: SendBuffer) {
        todo!()
    }
    fn can_send(&self, token: Token) -> bool {
        todo!()
    }
    fn send_to(&mut self, token: Token, to: SocketAddr, datagram: &[u8]) -> io::Result<bool> {
        todo!()
    }
    fn write_packet(&mut self, token: Token, packet: &[u8]) -> io::Result<bool> {
        todo!()
    }
    fn pause(&mut self, token: Token) {
        todo!()
    }
    fn resume(&mut self, token: Token) {
        todo!()
    }
    fn shutdown(&mut self, token: Token) {
        todo!()
    }
    fn close(&mut self, token: Token) {
        todo!()
    }
    fn waker(&self) -> Waker {
        todo!()
    }
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        todo!()
    }
    fn next_event(&mut self) -> Option<Event> {
        todo!()
    }
    fn bytes(&mut self, buffer: &RecvBuffer) -> &mut [u8] {
        todo!()
    }
    fn recycle(&mut self, buffer: RecvBuffer) {
        todo!()
    }
    fn name(&self) -> &'static str {
        todo!()
    }
}
