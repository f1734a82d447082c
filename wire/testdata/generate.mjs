// Writes ucanto.json: UCANs, receipts and messages as the JavaScript implementation makes them. To run it, install
// @ucanto/core@10.4.6, @ucanto/principal@9.0.3, @ucanto/transport@9.2.1 and @ucanto/server@11.0.3 beside it. The RSA
// key is a new one each time; all else is reproducible.
import { Message, Receipt, invoke, delegate } from '@ucanto/core'
import { ed25519, RSA, Absentee } from '@ucanto/principal'
import * as Transport from '@ucanto/transport'
import * as Server from '@ucanto/server'
import fs from 'fs'
import * as Link from 'multiformats/link'

const V = JSON.parse(fs.readFileSync(new URL('vectors.json', import.meta.url)))
const hex = b => Buffer.from(b).toString('hex')
const key = n => ed25519.parse(V.keys[n].secret)
const agent=key('agent'), storefront=key('storefront'), aggregator=key('aggregator'), dealer=key('dealer')
const L = s => Link.parse(s)
const piece=L(V.pieces[0].piece), content=L(V.pieces[0].content)
const service = storefront.withDID('did:web:storefront.example.com')
const rsa = await RSA.generate({extractable:true})
const mail = Absentee.from({id:'did:mailto:example.com:alice%2Bbob'})

const out = {ucans:[], receipts:[], messages:[], archives:[]}
const block = b => ({cid: b.cid.toString(), hex: hex(b.bytes)})
const ucan = async (name, signer, opts) => {
  const d = await delegate({issuer: signer, expiration: Infinity, ...opts})
  out.ucans.push({name, issuer: signer.did(), key: signer.toDIDKey ? signer.toDIDKey() : '', ...block(d.root)})
  return d
}
const offer = {can:'filecoin/offer', with: agent.did(), nb:{piece, content}}

const plain = await ucan('delegation without caveats', aggregator, {audience: storefront, capabilities:[{can:'piece/offer', with: aggregator.did()}]})
await ucan('delegation with empty caveats', aggregator, {audience: storefront, capabilities:[{can:'piece/offer', with: aggregator.did(), nb:{}}]})
const exp = await ucan('expiration, not before, nonce, facts', agent, {audience: storefront, expiration: 1893456000, notBefore: 1600000000, nonce:'once', facts:[{note:'h\u00e9llo "w\u00f6rld"\n', link: content},{n:-5, b:new Uint8Array([0,1,2,255]), list:[null,true,1.5,{}]}], capabilities:[offer]})
await ucan('expired long ago', agent, {audience: storefront, expiration: -5, capabilities:[offer]})
await ucan('two capabilities', agent, {audience: storefront, capabilities:[{can:'filecoin/*', with: agent.did()},{can:'*', with:'ucan:*'}]})
await ucan('did:web issuer', service, {audience: agent, capabilities:[{can:'filecoin/info', with: service.did(), nb:{piece}}]})
await ucan('did:web audience', agent, {audience: service, capabilities:[offer]})
const rsaU = await ucan('RSA issuer', rsa, {audience: storefront, capabilities:[{can:'filecoin/offer', with: rsa.did(), nb:{piece, content}}]})
const session = await ucan('absent signature', mail, {audience: agent, capabilities:[{can:'filecoin/*', with: 'did:mailto:example.com:alice%2Bbob'}]})
const attest = await ucan('attestation', service, {audience: agent, capabilities:[{can:'ucan/attest', with: service.did(), nb:{proof: session.cid}}]})
const chain1 = await ucan('chain, proof', agent, {audience: storefront, proofs:[exp, session], capabilities:[{can:'filecoin/offer', with: agent.did()}]})
const chain2 = await ucan('chain, proof of proof', storefront, {audience: aggregator, proofs:[chain1, plain, piece], capabilities:[{can:'filecoin/offer', with: agent.did()}]})
await ucan('spelling', agent, {audience: storefront, nonce:'a\bb\fc\u2028d\u2029', capabilities:[{...offer, nb:{note:'\b\f\u2028', 'k\b':1, whole: 2**53, '\u{1f41f}':1, '\ue000':2}}]})
await ucan('deep caveats', agent, {audience: storefront, capabilities:[{can:'test/deep', with:'https://example.com/?q=1#f', nb:{a:{b:{c:[[[[1,-1,'x']]]]}}, zz:0, aaa:18446744073709551615n, neg:-9007199254740993n}}]})

// receipts
const inv = await invoke({issuer: agent, audience: storefront, capability: offer, expiration: Infinity}).delegate()
const submit = await invoke({issuer: storefront, audience: storefront, capability:{can:'filecoin/submit', with: storefront.did(), nb:{piece, content}}, expiration: Infinity}).delegate()
const accept = await invoke({issuer: storefront, audience: storefront, capability:{can:'filecoin/accept', with: storefront.did(), nb:{piece, content}}, expiration: Infinity}).delegate()
const receipt = async (name, o) => {
  const r = await Receipt.issue({issuer: storefront, ...o})
  out.receipts.push({name, issuer: (o.issuer||storefront).did(), key: (o.issuer||storefront).toDIDKey(), ran: `${o.ran.link()}`, ...block(r.root)})
  return r
}
const rOffer = await receipt('offer with fork and join', {ran: inv, result:{ok:{piece}}, fx:{fork:[submit.link()], join: accept.link()}})
await receipt('no effects', {ran: inv.link(), result:{ok:{}}})
const rErr = await receipt('error', {ran: chain2.cid, result:{error:{name:'Boom', message:'no', cause:{name:'Inner', message:'x'}}}})
await receipt('meta and proofs', {ran: accept, result:{ok:{n:1.5, list:[1,2]}}, meta:{time: 123, note:'\u2028'}, proofs:[plain]})
await receipt('did:web issuer', {issuer: service, ran: accept.link(), result:{ok:null}, fx:{fork:[], join: submit.link()}})
const rFull = await receipt('embedded effects', {ran: inv, result:{ok:{piece}}, fx:{fork:[submit], join: accept}, proofs:[chain1]})

// messages
const enc = async (name, m, kind, extra={}) => {
  const codec = kind === 'request' ? Transport.CAR.request : Transport.CAR.response
  const {body} = await codec.encode(m)
  out.messages.push({name, kind, hex: hex(body), ...extra})
  return body
}
await enc('one invocation', await Message.build({invocations:[inv]}), 'request')
const attached = invoke({issuer: aggregator, audience: dealer, capability:{can:'aggregate/offer', with: dealer.did(), nb:{aggregate: L(V.aggregate), pieces: L(V.blocks['pieces of an aggregate'].cid)}}, proofs:[plain, chain2], facts:[{extra: L(V.blocks['buffer of an aggregator'].cid)}], expiration: Infinity})
const pb = {cid: L(V.blocks['pieces of an aggregate'].cid), bytes: Buffer.from(V.blocks['pieces of an aggregate'].hex,'hex')}
const bb = {cid: L(V.blocks['buffer of an aggregator'].cid), bytes: Buffer.from(V.blocks['buffer of an aggregator'].hex,'hex')}
attached.attach(bb); attached.attach(pb)
const att = await attached.delegate()
await enc('proofs and attached blocks', await Message.build({invocations:[att]}), 'request')
await enc('many invocations', await Message.build({invocations:[inv, submit, att, accept, inv]}), 'request')
await enc('receipt with its invocation', await Message.build({receipts:[rOffer]}), 'response')
await enc('receipts with all effects', await Message.build({receipts:[rFull, rErr]}), 'response')
const many=[]
for (let i=0;i<20;i++){ const t=await invoke({issuer: agent, audience: storefront, capability: offer, nonce:`${i}`, expiration: Infinity}).delegate(); many.push(await Receipt.issue({issuer:storefront, ran:t, result:{ok:{i}}})) }
await enc('twenty receipts', await Message.build({receipts:many}), 'response')
const conclude = await invoke({issuer: agent, audience: storefront, capability:{can:'ucan/conclude', with: agent.did(), nb:{receipt: rOffer.root.cid}}, expiration: Infinity}).delegate()
await enc('invocation and receipts', await Message.build({invocations:[conclude], receipts:[rOffer, rErr]}), 'request')
await enc('empty', await Message.build({}), 'response')

// a live server: what it answers
const provide = (inv, ctx) => Server.ok({piece}).fork(submit.link()).join(accept.link())
const server = Server.create({id: storefront, codec: Transport.CAR.inbound, service:{filecoin:{offer: provide}}, validateAuthorization: () => ({ok:{}})})
for (const [name, i] of [['served offer', inv], ['served offer with proofs', await invoke({issuer: agent, audience: storefront, capability: offer, proofs:[exp], nonce:'p', expiration: Infinity}).delegate()]]) {
  const req = await Transport.CAR.request.encode(await Message.build({invocations:[i]}))
  const res = await server.request(req)
  out.messages.push({name, kind:'exchange', request: hex(req.body), hex: hex(res.body)})
}
for (const d of [plain, chain2, att]) out.archives.push({cid: `${d.cid}`, hex: hex((await d.archive()).ok)})
fs.writeFileSync(new URL('ucanto.json', import.meta.url), JSON.stringify(out, null, 1)+'\n')
