"""Chats in other languages: short facts within long chatty messages, and questions about them.

Of each language there are facts with a question each, chatty sentences around them, and openings that ask for nothing.
A memory has half of the facts; a question about one of the others is foreign to it. All of it was written for this.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from gateway.core.dates import DAY_S
from scripts.talk.dialogue import ASSISTANT, BEGUN, USER, Turn
from scripts.talk.memories import AskedMessage, MemoryCase, history_of

_MEMORIES = 24
# Chatty sentences before and after a fact.
_BEFORE, _AFTER = (2, 4), (1, 3)
# Messages without a fact for each with one.
_CHATTY = 2

# Language -> a fact and the question about it, a line each.
FACTS = {
    "Chinese": """
我的猫叫年糕|我的猫叫什么名字
我对花生过敏|我对什么食物过敏
我姐姐在成都当护士|我姐姐是做什么工作的
我们的结婚纪念日是六月十八号|我们的结婚纪念日是哪天
我大学读的是土木工程|我大学学的什么专业
我爸爸下个月要做膝盖手术|我爸爸要做什么手术
我去年搬到了杭州滨江|我现在住在哪个城市
我的车是一辆白色的比亚迪|我开的是什么车
我每个星期三晚上去学陶艺|我星期三晚上做什么
我最喜欢的作家是余华|我喜欢哪个作家
我儿子在实验小学读三年级|我儿子读几年级
我们公司的老板姓欧阳|我们老板姓什么
我的护照明年三月到期|我的护照什么时候到期
我奶奶今年八十七岁了|我奶奶多大年纪
我在学拉大提琴|我在学什么乐器
我的自行车上周在地铁口被偷了|我的自行车在哪里丢的
我妻子是云南大理人|我妻子老家在哪里
我养的那盆茉莉昨天开花了|我种的什么花开了
我的膝盖不好所以不能跑步|为什么我不能跑步
我把备用钥匙放在邻居老王家|备用钥匙放在谁那里
我打算国庆节去敦煌旅行|国庆节我打算去哪里旅行
我的银行卡密码提示是外婆的生日|密码提示是什么
我弟弟刚被南京大学录取|我弟弟考上了哪所大学
我晚上喝咖啡会失眠|喝咖啡对我有什么影响
""",
    "Japanese": """
うちの犬の名前はきなこです|うちの犬の名前は何ですか
私はえびアレルギーがあります|私は何のアレルギーがありますか
姉は札幌で薬剤師をしています|姉の仕事は何ですか
結婚記念日は十一月三日です|結婚記念日はいつですか
大学では建築を勉強していました|大学で何を勉強していましたか
父は来週目の手術を受けます|父はどんな手術を受けますか
去年福岡に引っ越しました|今どの町に住んでいますか
毎週木曜日に弓道を習っています|木曜日に何を習っていますか
好きな作家は宮部みゆきです|好きな作家は誰ですか
息子は小学四年生になりました|息子は何年生ですか
会社の上司は西園寺さんといいます|上司の名前は何ですか
パスポートは来年の五月に切れます|パスポートはいつ切れますか
チェロを始めました|どんな楽器を始めましたか
自転車は駅前で盗まれました|自転車はどこで盗まれましたか
妻は沖縄の石垣島の出身です|妻の出身はどこですか
合鍵は隣の田村さんに預けています|合鍵は誰に預けていますか
夏休みは屋久島に行く予定です|夏休みはどこに行く予定ですか
弟は京都大学に合格しました|弟はどの大学に合格しましたか
祖母は九十二歳です|祖母は何歳ですか
コーヒーを飲むと眠れません|コーヒーを飲むとどうなりますか
""",
    "Korean": """
우리 고양이 이름은 보리예요|우리 고양이 이름이 뭐였지
저는 땅콩 알레르기가 있어요|제가 무슨 알레르기가 있죠
언니는 부산에서 간호사로 일해요|언니는 무슨 일을 하나요
결혼기념일은 시월 구일이에요|결혼기념일이 언제예요
대학에서 건축을 전공했어요|대학에서 무엇을 전공했나요
작년에 대전으로 이사했어요|작년에 어디로 이사했나요
목요일마다 도자기를 배워요|목요일마다 무엇을 배우나요
아들이 초등학교 삼학년이에요|아들이 몇 학년이에요
자전거를 지하철역 앞에서 잃어버렸어요|자전거를 어디서 잃어버렸나요
여름에 제주도로 여행 갈 거예요|여름에 어디로 여행 가나요
할머니는 아흔 살이세요|할머니 연세가 어떻게 되나요
첼로를 배우기 시작했어요|무슨 악기를 배우기 시작했나요
""",
    "Thai": """
แมวของฉันชื่อมะลิ|แมวของฉันชื่ออะไร
ฉันแพ้กุ้ง|ฉันแพ้อาหารอะไร
พี่สาวเป็นพยาบาลที่เชียงใหม่|พี่สาวทำงานอะไร
วันครบรอบแต่งงานคือวันที่สิบสองมิถุนายน|วันครบรอบแต่งงานคือวันไหน
ฉันเรียนสถาปัตยกรรมที่มหาวิทยาลัย|ฉันเรียนอะไรที่มหาวิทยาลัย
ปีที่แล้วฉันย้ายไปอยู่ขอนแก่น|ปีที่แล้วฉันย้ายไปอยู่ที่ไหน
ทุกวันพฤหัสฉันเรียนปั้นดินเผา|วันพฤหัสฉันเรียนอะไร
ลูกชายเรียนอยู่ชั้นประถมสาม|ลูกชายเรียนอยู่ชั้นไหน
จักรยานของฉันหายที่สถานีรถไฟ|จักรยานของฉันหายที่ไหน
ฤดูร้อนนี้ฉันจะไปเที่ยวกระบี่|ฤดูร้อนนี้ฉันจะไปเที่ยวที่ไหน
คุณย่าอายุเก้าสิบปี|คุณย่าอายุเท่าไร
ฉันเริ่มเรียนเชลโล|ฉันเริ่มเรียนเครื่องดนตรีอะไร
""",
    "German": """
Meine Katze heißt Pflaume|Wie heißt meine Katze?
Ich vertrage keine Haselnüsse|Welche Nüsse vertrage ich nicht?
Meine Schwester ist Krankenpflegerin in Leipzig|Was arbeitet meine Schwester?
Unser Hochzeitstag ist am 18. Juni|Wann ist unser Hochzeitstag?
Ich habe Bauingenieurwesen studiert|Was habe ich studiert?
Mein Vater bekommt nächsten Monat eine Knieoperation|Welche Operation bekommt mein Vater?
Letztes Jahr bin ich nach Freiburg gezogen|In welche Stadt bin ich gezogen?
Mittwochs gehe ich zum Töpferkurs|Zu welchem Kurs gehe ich mittwochs?
Meine Lieblingsschriftstellerin ist Jenny Erpenbeck|Wer ist meine Lieblingsschriftstellerin?
Mein Sohn geht in die dritte Klasse der Wilhelmschule|In welche Klasse geht mein Sohn?
Unsere Abteilungsleiterin heißt Frau Oberländer|Wie heißt unsere Abteilungsleiterin?
Mein Reisepass läuft im März ab|Wann läuft mein Reisepass ab?
Meine Großmutter ist siebenundachtzig geworden|Wie alt ist meine Großmutter geworden?
Ich habe mit dem Cellospielen angefangen|Welches Instrument habe ich angefangen?
Mein Fahrrad wurde am Hauptbahnhof gestohlen|Wo wurde mein Fahrrad gestohlen?
Meine Frau kommt aus dem Bregenzerwald|Woher kommt meine Frau?
Den Ersatzschlüssel hat Nachbar Wiesinger|Wer hat den Ersatzschlüssel?
In den Herbstferien fahren wir nach Rügen|Wohin fahren wir in den Herbstferien?
Mein Bruder hat den Studienplatz in Göttingen bekommen|Wo hat mein Bruder einen Studienplatz bekommen?
Von Kaffee am Abend kann ich nicht schlafen|Was passiert, wenn ich abends Kaffee trinke?
""",
    "German, compounds": """
Mein Zahnarzttermin ist am Dienstag um drei|Wann muss ich zum Zahnarzt?
Die Geburtstagsfeier ist bei uns im Schrebergarten|Wo feiern wir den Geburtstag?
Im Winterurlaub geht es nach Lappland|Wohin geht der Urlaub?
Der Autoschlüssel liegt in der Keksdose|Wo habe ich den Schlüssel hingelegt?
Die Waschmaschinenreparatur soll 180 Euro kosten|Was ist mit der Waschmaschine?
Ich bekomme seit Mai Klavierunterricht von Frau Sommer|Bei wem lerne ich Klavier?
Ich bin seit zwei Jahren im Schachverein|In welchem Verein bin ich?
Zum Nachtisch mag ich am liebsten Apfelkuchen|Welchen Kuchen esse ich gern?
Meine Fahrradversicherung läuft über die Huk|Wo ist mein Fahrrad versichert?
Ich nehme jeden Morgen eine Schilddrüsentablette|Was fehlt mir an der Schilddrüse?
Die Kindergartengebühren steigen auf 140 Euro|Wie teuer ist der Kindergarten?
Der Heizungsmonteur kommt erst am Montag|Wer schaut nach der Heizung?
Wir haben eine Stehlampe in Senfgelb bestellt|Welche Lampe soll kommen?
Neue Wanderschuhe habe ich in Garmisch gekauft|Woher sind meine Schuhe?
Unser Steuerberater ist in Rente gegangen|Was macht unser Berater?
Der Hausarzt hat mir eine Zinksalbe aufgeschrieben|Welche Salbe soll ich nehmen?
Die Krankenkassenbeiträge zahle ich vierteljährlich|Wie oft bezahle ich die Krankenkasse?
Für das Gartenhäuschen fehlt noch die Genehmigung|Was brauchen wir noch für den Garten?
Am Küchenfenster ist eine Scheibe gesprungen|Was ist am Fenster kaputt?
Die Gästematratze leihen wir uns von Paul|Von wem ist die Matratze?
Unser Hund ist beim Züchter in Soltau|Wo ist der Hundezüchter?
Die Nummer von meinem Pass endet auf 4711|Worauf endet die Passnummer?
Mit dem Kredit fürs Haus sind wir 2031 fertig|Bis wann läuft der Hauskredit?
Der Unterricht fängt bei Lena um acht an|Wann ist Unterrichtsbeginn?
""",
}
CHATTY = {
    "Chinese": """
今天上班的路上又堵车了|我觉得最近的天气变化特别大|昨天晚上看了一部很无聊的电影|说实话有点累但是还可以
中午跟同事一起吃了面条|周末本来想出去走走结果下雨了|不知道为什么这几天总是睡不好|对了还有一件事想跟你说
反正慢慢来吧不着急|朋友说这家店的味道一般|手机又没电了真是烦人|最近大家都在聊那个新闻
我想了半天也没想明白|晚上打算早点休息|楼下的小店又换老板了|这个月的开销有点大
其实也没什么特别的事|刚才去超市买了点水果|电梯又坏了只好爬楼梯|感觉时间过得真快
""",
    "Japanese": """
今日は電車がとても混んでいました|最近天気が変わりやすいですね|昨日の映画はあまり面白くなかったです|少し疲れましたが大丈夫です
昼は同僚とうどんを食べました|週末は出かけるつもりでしたが雨でした|このごろよく眠れません|そういえば話したいことがあります
まあゆっくりやります|友達はその店は普通だと言っていました|携帯の電池がまた切れました|みんなそのニュースの話をしています
いろいろ考えましたがわかりません|今夜は早く休もうと思います|近所の店がまた変わりました|今月は出費が多いです
""",
    "Korean": """
오늘 출근길이 정말 막혔어요|요즘 날씨가 자꾸 바뀌네요|어제 본 영화는 별로였어요|조금 피곤하지만 괜찮아요
점심에 동료하고 국수를 먹었어요|주말에 나가려고 했는데 비가 왔어요|요즘 잠을 잘 못 자요|그런데 할 말이 있어요
천천히 하면 되죠|친구가 그 가게는 보통이라고 했어요|휴대폰 배터리가 또 떨어졌어요|다들 그 뉴스 이야기만 해요
""",
    "Thai": """
วันนี้รถติดมาก|ช่วงนี้อากาศเปลี่ยนบ่อย|หนังเมื่อคืนไม่ค่อยสนุก|เหนื่อยนิดหน่อยแต่ไม่เป็นไร
ตอนเที่ยงกินก๋วยเตี๋ยวกับเพื่อนร่วมงาน|วันหยุดอยากออกไปเดินเล่นแต่ฝนตก|ช่วงนี้นอนไม่ค่อยหลับ|มีเรื่องอยากเล่าให้ฟัง
ค่อยๆ ทำไปก็ได้|เพื่อนบอกว่าร้านนั้นธรรมดา|แบตมือถือหมดอีกแล้ว|ทุกคนพูดถึงข่าวนั้น
""",
    "German": """
Heute war auf dem Weg zur Arbeit wieder Stau
Das Wetter spielt im Moment völlig verrückt|Der Film gestern Abend war ziemlich langweilig
Ich bin ein bisschen müde, aber es geht schon
Mittags waren wir mit den Kollegen Nudeln essen|Am Wochenende wollten wir raus, aber es hat geregnet
Ich weiß auch nicht, warum ich so schlecht schlafe|Ach ja, noch etwas wollte ich erzählen
Na ja, immer mit der Ruhe|Der Akku ist schon wieder leer
Alle reden gerade über diese Nachricht|Heute Abend will ich früh ins Bett
Der Laden unten hat schon wieder einen neuen Besitzer|Diesen Monat war alles recht teuer
""",
}
OPENINGS = {
    "Chinese": "你好|早上好，今天怎么样|谢谢你|哈哈真有意思|晚安",
    "Japanese": "こんにちは|おはようございます、元気ですか|ありがとう|なるほど、面白いですね|おやすみなさい",
    "Korean": "안녕하세요|좋은 아침이에요|고마워요|하하 재미있네요|잘 자요",
    "Thai": "สวัสดี|อรุณสวัสดิ์ เป็นอย่างไรบ้าง|ขอบคุณ|ฮ่าๆ ตลกดี|ราตรีสวัสดิ์",
    "German": "Hallo|Guten Morgen, wie geht's?|Danke dir|Haha, sehr schön|Gute Nacht",
}
# The first of them greet, which asks for a selection of the memory.
_GREETINGS = 2
# Small talk for which phrases of storage/search/said_to_assistants.txt were chosen, and some for which none was.
SMALL_TALK = {
    "Chinese": """
谢啦|没事了|好吧|嗯嗯|在吗|太好了|哈哈哈好搞笑|辛苦了|我先去忙了|回头聊|真的吗|有道理
随便聊聊吧|今天有点无聊|我懂了|不用了，谢谢|你真厉害|拜拜|没问题|那就这样吧
""",
    "Japanese": """
どうも|助かりました|うん|そうなんだ|へえ、知らなかった|またね|お疲れさま|ちょっと暇です
本当ですか|すごい|じゃあまた明日|大丈夫です|何か話そう|なんでもない|了解|失礼します
うれしい|考えてみます|そうしましょう|それは良かったです
""",
    "Korean": """
수고했어요|응 알겠어|정말요?|대단하네요|나중에 봐요|심심해요|ㅋㅋㅋ 웃기다|그래요
됐어요, 고맙습니다|거기 있어요?|아무거나 얘기해 봐요|맞아요|잘했어요|내일 봐요
다행이네요|신기하네요|그럴게요|이해했어요|안녕히 주무세요|괜찮아요
""",
    "Thai": """
ขอบใจนะ|เยี่ยมไปเลย|จริงเหรอ|โอเคเลย
ไว้คุยกันใหม่|เบื่อจัง|อยู่ไหม|555 ขำมาก|เก่งมาก
แค่นี้ก่อนนะ|เข้าใจละ|ไม่เป็นไรแล้ว|ว่าไง
งั้นเหรอ|น่าสนใจดี|พรุ่งนี้เจอกัน
คุยเล่นกันหน่อย|ดีใจจัง|ขอบคุณมากเลย|หลับฝันดีนะ
""",
}
OTHER_SMALL_TALK = {
    "Chinese": """
那我走了|你忙吧|好困啊|哎呀|原来如此|你说得对|改天再说|麻烦你了|行吧|笑死我了
""",
    "Japanese": """
そろそろ寝ます|うーん|さすがですね|行ってきます|ただいま|まあいいか|それはひどい
何してるの|ごめんなさい|やった
""",
    "Korean": """
졸려요|그러게요|다녀올게요|아이고|재밌었어요|미안해요|그럼 이만|할 게 없네요
정말 그래요?|힘내세요
""",
    "Thai": """
ง่วงแล้ว|จริงด้วย|ไปก่อนนะ|โอ้โห|สนุกดี|ขอโทษที
สู้ๆ นะ|ไม่มีอะไรทำเลย|ใช่แล้ว|ยินดีด้วย
""",
}
# Half of the questions are asked so.
FRAMES = {
    "Chinese": "不好意思我一下子想不起来了，{}来着，麻烦你帮我回忆一下好吗？",
    "Japanese": "すみません、ちょっと思い出せないのですが、{}、覚えていたら教えていただけますか？",
    "Korean": "미안한데 갑자기 생각이 안 나서 그러는데, {}, 혹시 기억하고 있으면 알려줄 수 있어요?",
    "Thai": "ขอโทษนะ นึกไม่ออกจริงๆ {} ถ้าจำได้ช่วยบอกหน่อยได้ไหม",
    "German": "Entschuldige, mir fällt es gerade überhaupt nicht ein, {} Kannst du mir da auf die Sprünge helfen?",
}
# And so are all questions of sets of their own, a line each. They were written to try a rule that was there already.
COURTESIES = {
    "Chinese": """
打扰一下，我之前好像提过，{}？现在突然记不清了。
我脑子一片空白，{}来着？劳驾你提醒一下。
问你个事儿，{}？我老是忘东忘西的。
抱歉又来烦你，{}呢？谢谢啦，你最靠谱了。
""",
    "Japanese": """
ごめん、ど忘れしちゃって、{}？前に話したと思うんだけど。
お忙しいところ恐縮ですが、{}？確認させてください。
ふと気になったのですが、{}？記憶があやふやで困っています。
また聞いてしまって申し訳ないです。{}？いつも助かっています。
""",
    "Korean": """
자꾸 깜빡해서 죄송한데요, {}? 전에 말씀드린 것 같아서요.
기억력이 나빠져서 큰일이네요. {}? 좀 상기시켜 주세요.
바쁘신데 귀찮게 해서 미안해요. {}? 확인 부탁드려요.
문득 궁금해졌는데 {}? 머릿속이 하얘졌어요.
""",
    "Thai": """
รบกวนหน่อยนะ ลืมไปสนิทเลย {} พอจะนึกออกไหม
สมองตื้อไปหมด {} ฝากเตือนความจำที
เหมือนเคยเล่าไปแล้ว {} ตอนนี้จำไม่ค่อยได้
""",
    "German": """
Verzeihung, dass ich schon wieder nachfrage. {} Bitte frische mein Gedächtnis auf.
Mein Kopf ist heute wie leergefegt. {} Tausend Dank vorab!
Das hatte ich doch schon mal erwähnt. {} Ich vergesse ständig alles.
Kurze Zwischenfrage, bevor ich losmuss: {} Du bist ein Schatz.
""",
}
REPLIES = {
    "Chinese": "我明白了，听起来挺有意思的。|好的，慢慢来。|谢谢你告诉我。",
    "Japanese": "なるほど、そうなんですね。|わかりました。|教えてくれてありがとう。",
    "Korean": "그렇군요.|알겠어요.|알려줘서 고마워요.",
    "Thai": "เข้าใจแล้ว|ดีเลย|ขอบคุณที่บอก",
    "German": "Verstehe, das klingt gut.|Alles klar.|Danke fürs Erzählen.",
}
_STOP = {"Chinese": "。", "Japanese": "。", "Korean": ". ", "Thai": " ", "German": ". "}


def make_chats(language: str, half: int, *, is_courteous: bool = False) -> Iterator[MemoryCase]:
    """Returns memories in a language. Each half has facts of its own, and asks about these facts.

    language: a name of FACTS; the part before a comma names all but the facts.
    is_courteous: True: each question stands among courtesies, and nothing else is asked.
    """
    facts = [tuple(line.split("|")) for line in FACTS[language].strip().splitlines()][half::2]
    language = language.partition(",")[0]
    chatty = [each for line in CHATTY[language].strip().splitlines() for each in line.split("|")]
    replies, stop = REPLIES[language].split("|"), _STOP[language]
    for number in range(_MEMORIES):
        pick = random.Random(f"{language} {half} {number}")
        pick.shuffle(facts)
        first_facts = facts[: len(facts) // 2]
        statements = [(index, text) for index, (text, _) in enumerate(first_facts)]
        statements += [(-1, "")] * (_CHATTY * len(first_facts))
        pick.shuffle(statements)
        sessions = []
        for day, start in enumerate(range(0, len(statements), 4)):
            turns = []
            for mark, text in statements[start : start + 4]:
                around = (
                    pick.sample(chatty, pick.randint(*_BEFORE)),
                    pick.sample(chatty, pick.randint(*_AFTER)),
                )
                sentences = [*around[0], *([text] if text else []), *around[1]]
                turns.append(Turn(USER, stop.join(sentences) + stop.rstrip(), {mark} if text else set()))
                turns.append(Turn(ASSISTANT, pick.choice(replies)))
            sessions.append((BEGUN + day * DAY_S, turns))
        history, marked = history_of(sessions)
        texts = [FRAMES[language].format(ask) if pick.random() < 0.5 else ask for _, ask in facts]
        if is_courteous:
            texts = [pick.choice(COURTESIES[language].strip().splitlines()).format(ask) for _, ask in facts]
        questions = [
            AskedMessage("fact", texts[index], frozenset(marked[index])) for index in range(len(first_facts))
        ]
        questions += [
            AskedMessage("foreign question", each, frozenset()) for each in texts[len(first_facts) :]
        ]
        if not is_courteous:
            questions += _list_openings(language)
        yield MemoryCase(history, questions, BEGUN + 60 * DAY_S)


def _list_openings(language: str) -> Iterator[AskedMessage]:
    """Yields first messages that ask for nothing."""
    for place, text in enumerate(OPENINGS[language].split("|")):
        yield AskedMessage("greeting" if place < _GREETINGS else "small talk", text, frozenset())
    for kind, phrases in (("small talk", SMALL_TALK), ("other small talk", OTHER_SMALL_TALK)):
        texts = phrases.get(language, "").replace("\n", "|").strip("|")
        yield from (AskedMessage(kind, text, frozenset()) for text in texts.split("|") if text)
